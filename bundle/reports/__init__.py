"""Turns the figures of an evaluation into tables, a summary, a report, and a comparison of evaluations."""
