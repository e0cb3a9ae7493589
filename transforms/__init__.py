"""MONAI transforms of the bundle: load, orient, HU window, and the way back to a NIfTI file."""
