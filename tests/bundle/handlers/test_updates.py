"""The stabilisers inside training: what they add to the loss, and that micro-batches agree."""

import pytest
import torch

from bundle.engines.events import AdversarialEvents
from bundle.handlers.updates import DiscriminatorUpdate
from bundle.losses.views import discriminator_views
from bundle.networks.discriminators import add_spectral_norm

STABILISERS = {
    "r1": {"r1_gamma": 10.0},
    "lecam": {"lecam_weight": 0.3},
    "spectral": {},
    "all": {"r1_gamma": 10.0, "lecam_weight": 0.3},
}


def stabilised(small_run, network, micro, name, iterations=1):
    """A run whose discriminators are stabilised; LeCam's anchors have seen something already."""
    torch.manual_seed(1)
    run = small_run(
        network, iterations, start=0, batch=4, micro=micro, size=32, weights=(1.0, 0.0, 4.0), warmup=1
    )
    run.losses = the_update(run.trainer).objective
    run.lecam = run.losses.anchors
    run.lecam.collect("image", torch.tensor([0.5]), torch.tensor([-0.5]), 1.0)
    run.lecam.update()
    for setting, value in STABILISERS[name].items():
        setattr(run.losses, setting, value)
    if name in ("spectral", "all"):
        add_spectral_norm(run.discriminators).requires_grad_(False)
        run.discriminator_optimizer.param_groups[0]["params"] = list(run.discriminators.parameters())
    return run


def the_update(trainer):
    handlers = [entry[0] for entries in trainer._event_handlers.values() for entry in entries]
    bound = [getattr(handler, "__wrapped__", handler) for handler in handlers]
    (update,) = {h.__self__ if hasattr(h, "__self__") else h for h in bound if is_update(h)}
    return update


def is_update(handler):
    return isinstance(getattr(handler, "__self__", handler), DiscriminatorUpdate)


@pytest.mark.parametrize("name", STABILISERS)
def test_accumulated_micro_batches_give_the_full_batch_s_gradient(tiny_vqgan, small_run, name):
    results = []
    for micro in (4, 1):
        torch.manual_seed(1)
        run = stabilised(small_run, tiny_vqgan(), micro, name).run()
        gradient = torch.cat([p.grad.flatten() for p in run.discriminators.parameters()])
        results.append((gradient, run.lecam.anchors.clone()))
    (full, anchors), (parts, anchors_of_parts) = results
    assert (full - parts).norm() <= 1e-5 * full.norm()
    torch.testing.assert_close(anchors, anchors_of_parts, rtol=1e-5, atol=1e-7)


def test_the_penalties_are_those_of_the_papers_times_the_discriminator_s_weight(tiny_vqgan, small_run):
    run = stabilised(small_run, tiny_vqgan(), 4, "r1")
    run.losses.weights["image"], seen = 2.0, {}
    run.losses.lecam_weight = 0.3

    @run.trainer.on(AdversarialEvents.GENERATOR_STEP)
    def both(engine):
        micro = engine.current.micro_batch
        recon = micro.reconstruction.image.detach()
        seen["penalty"] = float(run.losses(["image"], micro.image, recon, micro.positions, 1.0)[1].detach())
        (real,) = discriminator_views(micro.image, micro.positions, "image")
        (fake,) = discriminator_views(recon, micro.positions, "image")
        real = real.clone().requires_grad_(True)
        real_logits, fake_logits = (run.discriminators["image"](view)[-1] for view in (real, fake))
        (slope,) = torch.autograd.grad(real_logits.mean(dim=(1, 2, 3)).sum(), real)
        r1 = slope.square().sum(dim=(1, 2, 3)).mean()
        lecam = (real_logits + 0.5).square().mean() + (fake_logits - 0.5).square().mean()
        seen["expected"] = float((2.0 * (10.0 / 2 * r1 + 0.3 * lecam)).detach())

    run.run()
    assert seen["penalty"] == pytest.approx(seen["expected"], rel=1e-5)
    assert seen["expected"] > 0


def test_spectral_norms_and_anchors_move_once_per_iteration_and_resume(tiny_vqgan, small_run):
    torch.manual_seed(1)
    run = stabilised(small_run, tiny_vqgan(), 1, "all", iterations=2)
    before = run.discriminators.state_dict()
    names = [name for name in before if name.endswith("._u")]
    before = {name: before[name].clone() for name in names}
    run.run()

    saved = run.discriminators.state_dict()
    assert names and any(not torch.equal(saved[name], before[name]) for name in names)
    assert run.lecam.updates == 3
    torch.manual_seed(5)
    again = stabilised(small_run, tiny_vqgan(), 1, "all")
    again.discriminators.load_state_dict(saved)
    assert set(again.discriminators.state_dict()) == set(saved)
