import logging

import pytest
import torch
from ignite.engine import Engine, Events
from monai.engines import SupervisedEvaluator
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from bundle.checkpoints.file import read_checkpoint
from bundle.checkpoints.handler import CheckpointHandler
from bundle.handlers.curves import ScalarLog, TensorBoardLog
from bundle.handlers.validation import ReconstructionQuality, ValidateEvery
from bundle.inferers.halo import HaloInferer
from bundle.losses.perceptual import SlicePerceptualLoss
from bundle.metrics.grid import grid_score
from bundle.metrics.perceptual import slice_lpips
from bundle.metrics.reconstruction import reconstruction_figures

WINDOW = (-1000.0, 1000.0)


def volumes(count, shape=(24, 20, 16)):
    return [torch.rand(1, *shape) * 2 - 1 for _ in range(count)]


def evaluator(network, images, perceptual=None):
    metric = ReconstructionQuality(*WINDOW, perceptual)
    loader = [{"image": image[None]} for image in images]
    inferer = HaloInferer(tile_size=24)
    return SupervisedEvaluator("cpu", loader, network, inferer=inferer, key_val_metric={"val/psnr": metric})


def test_figures_are_the_means_over_volumes_of_the_stated_metric(tiny_vqgan):
    network, images = tiny_vqgan(), volumes(3)
    validator = evaluator(network, images)
    validator.run()
    with torch.no_grad():
        pairs = [(image[0], network(image[None])[0, 0].clamp(-1, 1)) for image in images]
    each = [reconstruction_figures(image * 1000, pred * 1000, *WINDOW) for image, pred in pairs]
    expected = {
        f"val/{name}": sum(getattr(figures, name) for figures in each) / 3
        for name in ("psnr", "ssim", "mae_hu", "rmse_hu")
    }
    assert validator.state.metrics == pytest.approx(expected, rel=1e-4)


def test_the_grid_is_the_mean_over_volumes_that_are_large_enough():
    metric = ReconstructionQuality(*WINDOW)
    preds = [torch.rand(1, side, 16, 16) * 2 - 1 for side in (16, 48, 64)]
    metric.update([{"image": preds[0], "pred": preds[0]}])
    assert "grid" not in metric.means()
    metric.update([{"image": pred, "pred": pred} for pred in preds[1:]])
    expected = sum(grid_score(pred[0] * 1000) for pred in preds[1:]) / 2
    assert metric.means()["grid"] == pytest.approx(expected, rel=1e-3)


def test_lpips_is_there_only_with_a_backbone_and_is_the_mean_of_at_most_16_slices(tiny_vqgan):
    network, images = tiny_vqgan(), volumes(1, (32, 32, 36))
    perceptual = SlicePerceptualLoss("squeeze", "random")
    seen = []
    perceptual.register_forward_hook(lambda module, inputs, output: seen.append(float(output)))
    validator = evaluator(network, images, perceptual)
    validator.run()
    assert len(seen) == 16
    assert validator.state.metrics["val/lpips"] == pytest.approx(sum(seen) / 16, rel=1e-5)
    with torch.no_grad():
        recon = network(images[0][None])[0].clamp(-1, 1)
    assert slice_lpips(perceptual, images[0], recon) == pytest.approx(sum(seen[:16]) / 16, rel=1e-3)


def test_reconstructions_beyond_the_window_are_clipped_before_they_are_compared():
    metric = ReconstructionQuality(*WINDOW)
    image = torch.ones(1, 8, 8, 8)
    metric.update([{"image": image, "pred": image * 3}])
    assert metric.means()["mae_hu"] == 0


def test_a_second_validation_forgets_the_first(tiny_vqgan):
    validator = evaluator(tiny_vqgan(), volumes(2))
    validator.run()
    first = dict(validator.state.metrics)
    validator.run()
    assert validator.state.metrics == first


@pytest.fixture
def finished_run(tmp_path, tiny_vqgan, small_run):
    """Runs with validation, curves and checkpoints in the order of configs/train.yaml."""

    def run(interval=1, **shape):
        happened = []
        network = tiny_vqgan()
        validator = evaluator(network, volumes(1))

        def handlers(run):
            return [
                ValidateEvery(interval),
                ScalarLog(TensorBoardLog(tmp_path), tmp_path, 10, run.optimizer, progress=False),
                CheckpointHandler(run.state, tmp_path, 100),
            ]

        last = tmp_path / "checkpoints" / "last.pt"
        small = small_run(network, validator=validator, weights=(0, 0, 0), handlers=handlers, **shape)
        validator.add_event_handler(
            Events.COMPLETED, lambda engine: happened.append((engine.state.trainer_iteration, last.exists()))
        )
        small.run()
        return happened, small

    return run


@pytest.mark.parametrize(
    ("shape", "validated_at"),
    [
        ({"iterations": 2, "max_epochs": 2}, [2, 4]),
        ({"iterations": 2, "max_epochs": 3, "interval": 2}, [4, 6]),
        ({"iterations": 4, "max_iterations": 3}, [3]),
        ({"iterations": 2, "max_epochs": 2, "max_iterations": 3}, [2, 3]),
        ({"iterations": 2, "max_epochs": 3, "max_iterations": 4}, [2, 4]),
    ],
    ids=["full", "every second epoch", "within the first epoch", "within an epoch", "at the end of an epoch"],
)
def test_every_run_ends_with_one_validation_and_then_its_last_checkpoint(
    tmp_path, finished_run, shape, validated_at
):
    happened, run = finished_run(**shape)
    assert happened == [(iteration, False) for iteration in validated_at]
    assert run.trainer.state.iteration == validated_at[-1]
    assert read_checkpoint(tmp_path / "checkpoints" / "last.pt")["trainer"]["iteration"] == validated_at[-1]
    assert (tmp_path / "checkpoints" / "best_1.pt").is_file()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [point.step for point in events.Scalars("val/psnr")] == validated_at


def test_a_run_shorter_than_the_interval_is_not_validated(tmp_path, finished_run, caplog):
    with caplog.at_level(logging.INFO, "bundle.handlers.validation"):
        happened, _ = finished_run(iterations=2, max_epochs=1, interval=5)

    assert happened == []
    assert "No validation: `val_interval` 5 is more than `max_epochs` 1" in caplog.text
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["last.pt"]


def test_validation_leaves_the_training_as_it_was(tmp_path, finished_run, tiny_vqgan, small_run):
    torch.manual_seed(1)
    _, validated = finished_run(iterations=1, max_epochs=3)
    torch.manual_seed(1)
    plain = small_run(tiny_vqgan(), iterations=1, max_epochs=3, weights=(0, 0, 0)).run()
    torch.testing.assert_close(validated.network.state_dict(), plain.network.state_dict(), rtol=0, atol=0)


def test_an_interval_below_one_epoch_is_refused():
    with pytest.raises(ValueError, match="`val_interval` must be a whole number from 1, got 0"):
        ValidateEvery(0)


@pytest.mark.parametrize(("at_start", "validated"), [(True, [0, 2, 4]), (False, [2, 4])])
def test_a_run_that_starts_from_weights_is_validated_before_its_first_iteration(at_start, validated):
    trainer, validator, seen = Engine(lambda *_: None), Engine(lambda *_: None), []
    trainer.validator, trainer.keep = validator, lambda name, part: None
    ValidateEvery(1, at_start).attach(trainer)
    validator.add_event_handler(Events.STARTED, lambda: validator.state.__setattr__("output", None))
    runs = validator.run
    validator.run = lambda: (seen.append(trainer.state.iteration), runs([0]))[1]  # type: ignore[method-assign]

    trainer.run([0], epoch_length=2, max_epochs=2)
    assert seen == validated
