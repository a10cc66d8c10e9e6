"""Everything that is transformers' `Trainer`, or hangs on it."""
