"""Measures one thing each; `python -m scripts.developer.benchmark` (`make bench`) runs them all."""
