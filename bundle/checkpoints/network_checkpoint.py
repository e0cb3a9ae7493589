"""Saves one network at the end of each epoch, in the project's checkpoint format."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events
from torch import nn

from bundle.checkpoints.file import write_checkpoint


class NetworkCheckpoint:
    """Writes `{"model": weights, **content}`, whole or not at all; the weights alone, so nothing to resume.

    Args:
        network: to save.
        path: of the .pt.
        content: plain values beside the weights; `network` among them says which VQ-GAN the latents are of.
    """

    def __init__(self, network: nn.Module, path: str | Path, content: Mapping[str, Any]) -> None:
        self.network, self.path, self.content = network, Path(path), dict(content)

    def attach(self, engine: Engine) -> None:
        """Joins the trainer."""
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Saves.

        Raises:
            CheckpointWriteError: if there is no room; what the file held before is still there.
        """
        write_checkpoint(self.path, {"model": self.network.state_dict(), **self.content})
