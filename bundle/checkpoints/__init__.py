"""Checkpoints: file format, folder of a run, state, saving and starting."""
