"""Measures how close a reconstructed volume is to its original."""
