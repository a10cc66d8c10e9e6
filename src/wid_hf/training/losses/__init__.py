"""Losses between a teacher and a student that trains."""
