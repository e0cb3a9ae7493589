"""Writes pictures of the first validation volumes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from PIL import Image

from bundle.data.volumes.window import to_whole_hu
from bundle.distributed.ranks import is_first
from bundle.drawing.triptych import render_triptych
from bundle.handlers.curves import TensorBoardLog
from bundle.run.atomic import complete_or_absent


class Pictures:
    """Writes pictures of the first validation volumes, in which a person sees what figures do not show.

    Attach it to the validation engine. Its output is a list of dictionaries with `image` and `pred`,
    (1, X, Y, Z) in [-1, 1] with RAS axes; its batch is a list of dictionaries with `spacing_mm`, and perhaps
    `name`. PNG files go to `<output_dir>/pictures`, the same pictures to TensorBoard under `val/pictures`.

    Args:
        output_dir: folder of the run.
        hu_min: HU of -1.
        hu_max: HU of 1.
        max_volumes: pictures per validation.
        tensorboard: the run's TensorBoard; None makes one in `output_dir`.
    """

    def __init__(
        self,
        output_dir: str | Path,
        hu_min: float,
        hu_max: float,
        max_volumes: int = 1,
        tensorboard: TensorBoardLog | None = None,
    ) -> None:
        if max_volumes < 0:
            raise ValueError(f"`max_volumes` must be 0 (no pictures) or more, got {max_volumes}")
        self.folder = Path(output_dir) / "pictures"
        self.hu_min, self.hu_max = hu_min, hu_max
        self.max_volumes = max_volumes
        self.tensorboard = tensorboard or TensorBoardLog(output_dir)
        self._n_drawn = 0

    def attach(self, engine: Engine) -> None:
        """Joins the validation engine; only the first process draws."""
        if self.max_volumes and is_first():
            engine.add_event_handler(Events.STARTED, self._restart)
            engine.add_event_handler(Events.ITERATION_COMPLETED, self.draw)

    def draw(self, engine: Engine) -> None:
        """Draws the volumes of one validation iteration until there are enough."""
        # MONAI's evaluator keeps what the data set says of a volume in the batch
        sources: Any = engine.state.batch
        outputs: Any = engine.state.output
        volumes = [{**source, **item} for source, item in zip(sources, outputs, strict=True)]
        for item in volumes[: self.max_volumes - self._n_drawn]:
            # the validation engine has an epoch of its own; the trainer leaves its iteration here
            iteration = getattr(engine.state, "trainer_iteration", engine.state.epoch)
            self._draw_one(item, iteration)
            self._n_drawn += 1

    def _restart(self) -> None:
        self._n_drawn = 0

    def _draw_one(self, item: dict[str, Any], iteration: int) -> None:
        name = str(item.get("name", f"volume_{self._n_drawn}"))
        picture = render_triptych(
            self._to_hu(item["image"]),
            self._to_hu(item["pred"]),
            [float(mm) for mm in item["spacing_mm"]],
            hu_min=self.hu_min,
            hu_max=self.hu_max,
            caption=f"{name}, iteration {iteration}",
        )
        stem = re.sub(r"[^\w.-]+", "_", Path(name).name)
        with complete_or_absent(self.folder / f"{stem}_iteration_{iteration:07d}.png") as unfinished:
            Image.fromarray(picture).save(unfinished)
        tag = f"val/pictures/{self._n_drawn}"
        self.tensorboard.writer.add_image(tag, picture, iteration, dataformats="HWC")

    def _to_hu(self, network_range: torch.Tensor) -> torch.Tensor:
        """Turns (1, X, Y, Z) in [-1, 1] into (X, Y, Z) in HU, as 16 bit integers."""
        image = network_range.detach().as_subclass(torch.Tensor)[0]
        return to_whole_hu(image, self.hu_min, self.hu_max)
