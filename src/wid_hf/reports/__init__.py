"""What a run tells: JSON files, model cards, one HTML page."""
