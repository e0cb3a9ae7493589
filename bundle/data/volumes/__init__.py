"""Reads and writes one CT volume: formats, headers, geometry, voxels."""
