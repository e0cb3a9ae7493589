"""The bundle's own code; `from bundle import load_model` gives a trained model (docs/latents.md)."""

import importlib
from typing import Any

_API = ("Model", "load_model", "save_volume")


def __getattr__(name: str) -> Any:
    """Imports `bundle.api` when one of its names is asked for: every other room is imported without it."""
    if name in _API:
        return getattr(importlib.import_module("bundle.api"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
