"""Lets processes work together: what their launcher says, how they meet, and what they exchange."""
