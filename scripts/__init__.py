"""Commands that a person runs: `python -m scripts.NAME --help` explains each."""
