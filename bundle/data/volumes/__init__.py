"""One CT volume: formats, headers, reading and writing."""
