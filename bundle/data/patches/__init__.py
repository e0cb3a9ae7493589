"""Cuts patches for training: where they are placed, and the data sets that read them."""
