"""The PEFT side: the tuner, its registration with PEFT, and what a saved adapter holds."""
