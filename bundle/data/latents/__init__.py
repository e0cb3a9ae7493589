"""Encoded volumes: their file, data set and statistics."""
