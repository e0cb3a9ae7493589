"""Describes how this run makes its results."""

from collections.abc import Mapping
from functools import cached_property
from typing import Any

from bundle.data.cases.provenance import Provenance, short_halo
from bundle.networks.fingerprint import fingerprint


class Maker:
    """The model with its weights, and everything else that determines a result.

    Args:
        network: the generator; its weights are loaded when this is first called.
        settings: `network_settings` of its checkpoint.
        amp: whether it computes in bf16.
        halo: voxels of context around a tile; None = the network's own.
    """

    def __init__(self, network: Any, settings: Mapping[str, Any], amp: bool, halo: int | None) -> None:
        self.network, self.settings, self.amp, self.halo = network, dict(settings), amp, halo

    def __call__(self) -> Provenance:
        """Returns the provenance of this run's results."""
        return self._provenance

    @cached_property
    def _provenance(self) -> Provenance:
        halo = short_halo(self.halo, self.network.halo)
        return Provenance(fingerprint(self.network), self.settings, self.amp, halo)
