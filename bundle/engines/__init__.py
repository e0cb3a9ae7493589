"""The training engine: one iteration, its events, and what it needs to be built."""
