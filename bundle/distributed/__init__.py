"""Lets processes work together: what their launcher says, how they connect, and what they exchange."""
