"""Ignite handlers: the two updates, the gate, validation, checkpoints, logs and pictures."""
