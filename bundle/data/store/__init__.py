"""The patch store: int16 HU in compressed, checksummed cubes."""
