"""Patches for training: where they lie and the data sets that cut them."""
