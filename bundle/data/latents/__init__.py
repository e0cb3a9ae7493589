"""Stores encoded volumes, reads them as a data set and measures their statistics."""
