"""Ignite handlers: the two updates, the gate, validation, curves, pictures, health and stop signals."""
