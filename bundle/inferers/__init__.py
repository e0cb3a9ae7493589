"""Inferers: exact tiling of volumes that do not fit into memory as activations."""
