"""Training with transformers' `Trainer`: trainers, arguments, callbacks, losses, checkpoints."""
