"""Inferers: whole volumes in slabs or tiles, exactly as in one pass for which memory would not suffice."""
