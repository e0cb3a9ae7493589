"""Measures the health of the codebook between two points of its curves."""

from typing import Any

import torch

from bundle.networks.quantizer import Quantizer


class CodebookWindow:
    """Measures the codebook over a window of iterations and all ranks, not just over the last batch.

    Attributes:
        CURVES: what it measures, by the names of the curves.
    """

    CURVES = ("codebook/usage", "codebook/perplexity", "codebook/restarts")

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Starts a new window."""
        self._counts: torch.Tensor | None = None
        self._restarts: torch.Tensor | float = 0.0
        self._updates = 0

    def add(self, quantizer: Quantizer) -> None:
        """Adds the counts and restarts of the quantizer's last update."""
        counts = quantizer.counts()
        if counts is None:
            return
        seen = counts.seen
        self._counts = seen if self._counts is None else self._counts.to(seen.device) + seen
        self._restarts = self._restarts + counts.restarts
        self._updates += 1

    def state_dict(self) -> dict[str, Any]:
        """Returns what was added since the last point."""
        return {"counts": self._counts, "restarts": self._restarts, "updates": self._updates}

    def load_state_dict(self, content: dict[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        self._counts, self._restarts, self._updates = (
            content[name] for name in ("counts", "restarts", "updates")
        )

    def figures(self) -> dict[str, float]:
        """Returns share of codes in use, perplexity and restarts per update, and starts a new window."""
        if self._counts is None:
            return {}
        shares = self._counts.double() / self._counts.sum()
        used = shares[shares > 0]
        usage = len(used) / len(shares)
        perplexity = float(torch.exp(-(used * used.log()).sum()))
        figures = (usage, perplexity, float(self._restarts) / self._updates)
        self.reset()
        return dict(zip(self.CURVES, figures, strict=True))
