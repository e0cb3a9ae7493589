"""Shows original, reconstruction and difference in a browser."""
