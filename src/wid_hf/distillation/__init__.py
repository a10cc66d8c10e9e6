"""Losses from a teacher: of a wid model by its own originals, and of a stock student beside it."""
