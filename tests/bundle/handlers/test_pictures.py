"""Pictures show the right side, the right aspect, the right grey; the handler draws what it was given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from bundle.drawing.planes import (
    LUNG,
    MEDIASTINUM,
    PLANES,
    HUWindow,
    cut,
    difference_panel,
    grey_panel,
    panel_size,
)
from bundle.drawing.triptych import render_comparison, render_triptych
from bundle.handlers.pictures import Pictures

SHAPE, SPACING = (12, 16, 10), (0.7, 0.7, 2.5)


def _volume(hu: float = -800.0) -> torch.Tensor:
    return torch.full(SHAPE, hu)


def _validate(items: list[dict[str, Any]], pictures: Pictures, iteration: int, batches: int = 1) -> None:
    """As MONAI's evaluator: the volumes are in the output, what the data set says of them in the batch."""
    volumes = [{key: item[key] for key in ("image", "pred")} for item in items]
    sources = [{key: item[key] for key in ("spacing_mm", "name")} for item in items]
    engine = Engine(lambda engine, batch: volumes)
    pictures.attach(engine)
    engine.state.trainer_iteration = iteration
    engine.run([sources] * batches)


def _item(name: str, seed: int = 0) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    image = torch.rand((1, *SHAPE), generator=generator) * 2 - 1
    return {"image": image, "pred": image * 0.9, "spacing_mm": SPACING, "name": name}


@pytest.mark.parametrize(
    ("name", "corner"), [("axial", (-1, -1, 5)), ("coronal", (-1, 8, -1)), ("sagittal", (6, -1, -1))]
)
def test_right_front_and_head_of_the_patient_lie_in_the_upper_left(
    name: str, corner: tuple[int, int, int]
) -> None:
    volume = _volume()
    volume[corner] = 500  # the last voxel along a RAS axis is the one furthest to the right, front or head
    plane = PLANES[name]
    pixels = cut(volume, plane, corner[plane.axis], -1000, 1000)
    assert np.argwhere(pixels == 500).tolist() == [[0, 0]]


@pytest.mark.parametrize(
    ("name", "expected"), [("axial", (84, 112)), ("coronal", (84, 250)), ("sagittal", (112, 250))]
)
def test_a_panel_is_as_wide_and_high_as_the_plane_in_millimetres(
    name: str, expected: tuple[int, int]
) -> None:
    assert panel_size(SHAPE, SPACING, PLANES[name], px_per_mm=10) == expected


@pytest.mark.parametrize("window", [LUNG, MEDIASTINUM], ids=lambda window: window.name)
def test_grey_is_black_at_the_lower_end_of_the_window_and_white_at_the_upper(window: HUWindow) -> None:
    half = window.width / 2
    hu = np.array([[-3000, window.level - half, window.level, window.level + half, 3000]], dtype=np.float32)
    assert np.asarray(grey_panel(hu, (5, 1), window))[0, :, 0].tolist() == [0, 0, 128, 255, 255]


def test_too_bright_is_orange_and_too_dark_blue_on_a_scale_that_does_not_move() -> None:
    colours = np.asarray(difference_panel(np.array([[-100, 0, 100]], dtype=np.float32), (3, 1), 200)).astype(
        int
    )
    with_outlier = np.asarray(
        difference_panel(np.array([[-100, 0, 100, 900]], dtype=np.float32), (4, 1), 200)
    )
    (blue, none, orange) = colours[0]
    assert blue[2] > blue[0] + 100 and orange[0] > orange[2] + 100 and none.max() < 20
    assert np.array_equal(with_outlier[0, :3], colours[0])


def test_scanner_padding_below_the_window_is_no_difference() -> None:
    same = render_triptych(_volume(-1000), _volume(-1000), SPACING)
    assert np.array_equal(render_triptych(_volume(-2048), _volume(-1000), SPACING), same)


def test_a_difference_shows_in_the_last_column_of_every_plane_it_touches() -> None:
    image, recon = _volume(), _volume()
    recon[..., 5] += 150
    unchanged = render_triptych(image, image, SPACING).astype(int)
    orange = render_triptych(image, recon, SPACING).astype(int) - unchanged
    rows, columns = np.nonzero((orange[..., 0] > 100) & (orange[..., 2] < 100))
    height, width = unchanged.shape[:2]
    assert columns.min() > 0.7 * width
    for third in range(3):  # the axial slice is full of it, coronal and sagittal planes hold one line
        assert np.any((rows > third * height / 3) & (rows < (third + 1) * height / 3))


def test_arrays_and_tensors_give_the_same_picture() -> None:
    image = torch.rand(SHAPE, generator=torch.Generator().manual_seed(1)) * 2000 - 1000
    expected = render_triptych(image, image + 30, SPACING)
    assert np.array_equal(render_triptych(image.numpy(), (image + 30).numpy(), SPACING), expected)


def test_the_planes_go_through_the_given_centre() -> None:
    image = _volume()
    image[:, :, 2] = 700
    middle, through = (
        render_triptych(image, image, SPACING),
        render_triptych(image, image, SPACING, centre=(6, 8, 2)),
    )
    assert (through > 250).sum() > 2 * (middle > 250).sum()


@pytest.mark.parametrize("shape", [(3, 400, 5), (200, 200, 1), (1, 1, 1)])
def test_volumes_of_extreme_shape_are_drawn(shape: tuple[int, int, int]) -> None:
    picture = render_triptych(np.full(shape, -800, np.int16), np.full(shape, -700, np.int16), (1.0, 1.0, 1.0))
    assert picture.dtype == np.uint8 and max(picture.shape) < 3000 and picture.max() > 200


def test_the_handler_draws_the_volumes_in_hu_into_file_and_tensorboard(tmp_path: Path) -> None:
    item = _item("case_7")
    pictures = Pictures(tmp_path, hu_min=-1000, hu_max=600)
    _validate([item], pictures, iteration=500)
    pictures.tensorboard.close()
    image, recon = (((item[key][0] + 1) * 800 - 1000).round() for key in ("image", "pred"))
    window = {"hu_min": -1000, "hu_max": 600, "caption": "case_7, iteration 500"}
    expected = render_triptych(image, recon, SPACING, **window)
    assert np.array_equal(
        np.asarray(Image.open(tmp_path / "pictures" / "case_7_iteration_0000500.png")), expected
    )
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in events.Images("val/pictures/0")] == [500]


def test_only_the_first_volumes_of_each_validation_are_drawn(tmp_path: Path) -> None:
    pictures = Pictures(tmp_path, -1000, 1000, max_volumes=3)
    items = [_item("a"), _item("b")]
    _validate(items, pictures, iteration=100, batches=4)
    _validate(items, pictures, iteration=200, batches=4)
    names = sorted(path.name for path in (tmp_path / "pictures").iterdir())
    assert names == [f"{name}_iteration_0000{n}.png" for name in "ab" for n in (100, 200)]
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert sorted(events.Tags()["images"]) == ["val/pictures/0", "val/pictures/1", "val/pictures/2"]


def test_without_pictures_nothing_is_written(tmp_path: Path) -> None:
    _validate([_item("a")], Pictures(tmp_path, -1000, 1000, max_volumes=0), iteration=1)
    assert not any(tmp_path.iterdir())


def test_a_name_with_folders_stays_inside_the_pictures_folder(tmp_path: Path) -> None:
    _validate([_item("../elsewhere/scan 1.nii.gz")], Pictures(tmp_path, -1000, 1000), iteration=1)
    assert (tmp_path / "pictures" / "scan_1.nii.gz_iteration_0000001.png").is_file()


def test_wrong_arguments_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"of one shape, got \(12, 16, 10\) and \(12, 16, 9\)"):
        render_triptych(_volume(), _volume()[..., :9], SPACING)
    with pytest.raises(ValueError, match=r"`centre` must lie inside the volume .*, got \[6, 16, 5\]"):
        render_triptych(_volume(), _volume(), SPACING, centre=(6, 16, 5))
    with pytest.raises(ValueError, match="`max_volumes` must be 0 .no pictures. or more, got -1"):
        Pictures(tmp_path, -1000, 1000, max_volumes=-1)


def test_a_comparison_shows_every_reconstruction_and_its_difference_at_one_scale() -> None:
    image = np.full((40, 40, 40), 0, np.int16)
    same = render_comparison(image, {"base": image, "with": image}, (1.0, 1.0, 1.0))
    other = render_comparison(image, {"base": image, "with": image + 100}, (1.0, 1.0, 1.0))
    changed = np.abs(same.astype(int) - other).sum((0, 2)).nonzero()[0]

    column = 384 + 6
    assert {int(at - 30) // column for at in changed} == {2, 4}  # the second reconstruction, its difference


def test_a_comparison_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one reconstruction, got none"):
        render_comparison(np.zeros((4, 4, 4), np.int16), {}, (1.0, 1.0, 1.0))
