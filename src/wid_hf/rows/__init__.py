"""What rows of data hold, and where they come from."""
