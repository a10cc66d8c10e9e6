"""The PEFT side: the tuner, what PEFT is told of it, and what a saved adapter holds."""
