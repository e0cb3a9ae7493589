import itertools
from contextlib import contextmanager

import pytest
import torch
from ignite.engine import Events
from monai.handlers import from_engine
from torch.utils._python_dispatch import TorchDispatchMode

from bundle.engines.events import AdversarialEvents
from bundle.engines.optimizers import build_optimizer
from bundle.engines.trainer import AdversarialTrainer
from bundle.handlers.gate import IterationGate
from bundle.handlers.nonfinite import HealthGuard
from bundle.handlers.updates import GeneratorUpdate
from bundle.losses.discriminator import DiscriminatorObjective
from bundle.losses.objective import GeneratorObjective


def copy_of(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def count_calls(module):
    calls = []
    module.register_forward_hook(lambda *_: calls.append(1))
    return calls


def test_discriminators_are_untouched_up_to_the_gate_and_move_after_it(tiny_vqgan, small_run):
    setup = small_run(tiny_vqgan(), iterations=3, start=2)
    initial, states, calls = copy_of(setup.discriminators), {}, {}
    counters = [count_calls(discriminator) for discriminator in setup.discriminators.values()]

    @setup.trainer.on(Events.ITERATION_COMPLETED)
    def remember(engine):
        states[engine.state.iteration] = copy_of(setup.discriminators)
        calls[engine.state.iteration] = [len(counter) for counter in counters]

    setup.run()
    assert all(torch.equal(states[2][name], initial[name]) for name in initial)
    assert calls[2] == [0, 0]
    assert all(
        not torch.equal(states[3][name], initial[name]) for name in initial if name.endswith("conv.weight")
    )


@pytest.mark.parametrize("iterations", [1, 2])
def test_below_the_gate_the_generator_is_trained_as_without_discriminators(tiny_vqgan, small_run, iterations):
    torch.manual_seed(1)
    with_gate = tiny_vqgan()
    torch.manual_seed(1)
    without = tiny_vqgan()
    small_run(with_gate, iterations, start=2).run()
    small_run(without, iterations, weights=(0, 0, 0)).run()
    assert all(
        torch.equal(a, b)
        for a, b in zip(with_gate.state_dict().values(), without.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize("pretrain", [0, 1])
def test_discriminators_see_images_and_reconstruction_once_per_iteration(tiny_vqgan, small_run, pretrain):
    setup = small_run(tiny_vqgan(), iterations=1, start=0, pretrain=pretrain)
    counters = [count_calls(discriminator) for discriminator in setup.discriminators.values()]
    setup.run()
    assert [len(counter) for counter in counters] == [2, 2]


class HostReads(TorchDispatchMode):
    """Counts operations that make Python wait for a GPU, since it needs their result."""

    NAMES = ("aten._local_scalar_dense", "aten.nonzero", "aten.equal", "aten.is_nonzero")
    count, is_counting = 0, True

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += self.is_counting and str(func).startswith(self.NAMES)
        return func(*args, **(kwargs or {}))


def test_an_iteration_waits_once_for_the_device_and_that_is_for_the_guard(tiny_vqgan, small_run, tmp_path):
    guard = lambda run: [HealthGuard(run.state, tmp_path, "rollback", 10, 0.5)]  # noqa: E731
    setup, reads, counts = small_run(tiny_vqgan(), iterations=2, start=0, handlers=guard), HostReads(), []
    for optimizer in (setup.optimizer, setup.discriminator_optimizer):
        # on a CPU Adam reads its own count, on a GPU it is fused
        optimizer.register_step_pre_hook(lambda *_: setattr(reads, "is_counting", False))
        optimizer.register_step_post_hook(lambda *_: setattr(reads, "is_counting", True))
    setup.trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda: counts.append(reads.count))
    with reads:
        setup.run()
    assert counts[1] - counts[0] == 1


def test_above_the_gate_the_generator_feels_the_discriminators(tiny_vqgan, small_run):
    torch.manual_seed(1)
    opened = tiny_vqgan()
    torch.manual_seed(1)
    closed = tiny_vqgan()
    small_run(opened, 2, start=1).run()
    small_run(closed, 2, start=2).run()
    assert not torch.equal(opened.encoder.blocks[0].conv.weight, closed.encoder.blocks[0].conv.weight)


def test_while_the_discriminators_train_alone_the_generator_ignores_them(tiny_vqgan, small_run):
    torch.manual_seed(1)
    pretraining = tiny_vqgan()
    torch.manual_seed(1)
    closed = tiny_vqgan()
    setup = small_run(pretraining, 2, start=0, pretrain=2)
    initial = copy_of(setup.discriminators)
    setup.run()
    small_run(closed, 2, start=2).run()
    assert all(torch.equal(a, b) for a, b in zip(pretraining.parameters(), closed.parameters(), strict=True))
    assert not torch.equal(
        setup.discriminators.state_dict()["image.0.conv.weight"], initial["image.0.conv.weight"]
    )


def test_each_update_leaves_the_other_side_s_parameters_and_gradients_alone(tiny_vqgan, small_run):
    setup, seen = small_run(tiny_vqgan(), iterations=2, start=0), []

    def watch(optimizer, other):
        before = []
        optimizer.register_step_pre_hook(
            lambda *_: before.append([parameter.clone() for parameter in other.parameters()])
        )
        optimizer.register_step_post_hook(
            lambda *_: seen.append(
                all(torch.equal(now, old) for now, old in zip(other.parameters(), before.pop(), strict=True))
            )
        )

    @setup.trainer.on(Events.ITERATION_COMPLETED)
    def generator_gradients_are_its_own(engine):
        seen.append(all(not p.requires_grad for p in setup.discriminators.parameters()))

    watch(setup.optimizer, setup.discriminators)
    watch(setup.discriminator_optimizer, setup.network)
    setup.run()
    assert seen == [True] * 6


def test_the_discriminators_gradient_is_that_of_their_loss_alone(tiny_vqgan, small_run):
    setup, gradients = small_run(tiny_vqgan(), iterations=1, start=0), []
    initial = copy_of(setup.discriminators)
    setup.discriminator_optimizer.register_step_pre_hook(
        lambda *_: gradients.extend(p.grad.clone() for p in setup.discriminators.parameters())
    )
    seen = []

    @setup.trainer.on(AdversarialEvents.GENERATOR_STEP)
    def remember(engine):
        micro = engine.current.micro_batch
        seen.extend([micro.image, micro.reconstruction.image.detach(), micro.positions])

    setup.run()
    setup.discriminators.load_state_dict(initial)
    losses = DiscriminatorObjective(setup.discriminators, {"image": 1.0, "video": 0.5})
    setup.discriminators.requires_grad_(True)
    setup.discriminators.zero_grad()
    expected = torch.autograd.grad(
        losses(["image", "video"], *seen, 1.0)[0], list(setup.discriminators.parameters())
    )
    for got, wanted in zip(gradients, expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-7)


def test_without_gan_weights_nothing_is_built_and_training_runs(tiny_vqgan, small_run):
    setup = small_run(tiny_vqgan(), iterations=1, weights=(0, 0, 0)).run()
    assert len(setup.discriminators) == 0
    assert setup.discriminator_optimizer is None
    assert set(setup.trainer.current.losses) == {"loss", "recon_loss", "commitment_loss"}


def test_freed_memory_is_kept_from_the_first_iteration_to_the_last(tiny_vqgan, small_run, monkeypatch):
    setup, seen = small_run(tiny_vqgan(), iterations=2), []

    @contextmanager
    def noting(device):
        seen.append(f"begin {device}")
        yield
        seen.append("end")

    monkeypatch.setattr("bundle.engines.trainer.freed_memory_kept", noting)
    setup.trainer.add_event_handler(
        Events.ITERATION_COMPLETED, lambda engine: seen.append(engine.state.iteration)
    )
    setup.run()
    assert seen == ["begin cpu", 1, 2, "end"]


def test_monais_handlers_find_the_loss(tiny_vqgan, small_run):
    setup = small_run(tiny_vqgan(), iterations=1).run()
    found = from_engine(["loss"], first=True)(setup.trainer.state.output)  # as of `--tracking mlflow`
    assert found.item() == setup.trainer.current.losses["loss"].item()


def test_bf16_on_a_cpu_is_asked_for_by_name_and_leaves_the_voxels_in_float32(tiny_vqgan, small_run):
    used = {}
    for wanted in (False, True):
        setup = small_run(tiny_vqgan(), iterations=2, amp_on_cpu=wanted)
        latents, images = used[wanted] = set(), set()
        setup.network.encoder.register_forward_hook(lambda *args, to=latents: to.add(args[2].dtype))
        setup.trainer.add_event_handler(
            AdversarialEvents.GENERATOR_STEP,
            lambda engine, to=images: to.add(engine.micro_batch.reconstruction.image.dtype),
        )
        setup.run()
    assert used == {False: ({torch.float32}, {torch.float32}), True: ({torch.bfloat16}, {torch.float32})}


def test_the_generator_runs_once_per_sample_and_the_codebook_once_per_iteration(tiny_vqgan, small_run):
    setup = small_run(tiny_vqgan(), iterations=3, start=1, batch=4, micro=2)
    samples = []
    setup.network.encoder.register_forward_hook(lambda module, inputs, output: samples.append(len(inputs[0])))
    setup.run()
    assert samples == [2] * 6
    assert setup.network.quantizer.updates == 3


@pytest.mark.parametrize("micro", [1, 3])
def test_accumulated_micro_batches_give_the_full_batch_s_gradients(tiny_vqgan, small_run, monkeypatch, micro):
    # 32^3: at 24^3 an instance norm of the slice discriminator sees 2 x 2 values and magnifies rounding;
    # and without oneDNN, which on some processors adds in another order for another batch
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)
    gradients = {}
    for size in (4, micro):
        torch.manual_seed(1)
        setup = small_run(tiny_vqgan(), iterations=1, start=0, batch=4, micro=size, size=32)
        for optimizer, module in (
            (setup.optimizer, setup.network),
            (setup.discriminator_optimizer, setup.discriminators),
        ):
            optimizer.register_step_pre_hook(
                lambda *_, module=module, size=size: gradients.setdefault(size, []).append(
                    torch.cat([p.grad.flatten() for p in module.parameters()])
                )
            )
        setup.run()
        gradients[size].append(setup.network.quantizer.embedding.clone())
        gradients[size].append(setup.trainer.current.losses["loss"])
    for full, accumulated in zip(gradients[4], gradients[micro], strict=True):
        assert (full - accumulated).norm() <= 1e-5 * full.norm()


def test_the_codebook_starts_from_the_whole_first_batch(tiny_vqgan, small_run):
    results = []
    for micro in (1, 4):
        torch.manual_seed(1)
        network = tiny_vqgan()
        network.quantizer.initialized.fill_(False)
        network.quantizer._forget()
        small_run(network, iterations=1, batch=4, micro=micro).run()
        results.append(network.quantizer.embedding.clone())
    torch.testing.assert_close(*results)


def test_curves_appear_when_the_gate_opens(tiny_vqgan, small_run):
    setup, outputs = small_run(tiny_vqgan(), iterations=3, start=1, pretrain=1), {}
    setup.trainer.add_event_handler(
        Events.ITERATION_COMPLETED, lambda e: outputs.update({e.state.iteration: set(e.current.losses)})
    )
    setup.run()
    base = {"loss", "recon_loss", "commitment_loss"}
    assert outputs == {1: base, 2: base | {"disc_loss"}, 3: base | {"disc_loss", "gen_loss", "gan_feat_loss"}}


def test_training_ends_at_max_iterations(tiny_vqgan, small_run):
    setup = small_run(tiny_vqgan(), iterations=10, weights=(0, 0, 0))
    setup.trainer.max_iterations = 2
    completed = []
    setup.trainer.add_event_handler(Events.COMPLETED, lambda: completed.append(1))
    setup.run()
    assert setup.trainer.state.iteration == 2
    assert completed == [1]


def test_the_loss_falls_on_one_patch(tiny_vqgan):
    network = tiny_vqgan()
    image = {
        "image": torch.linspace(-1, 1, 24)[None, None, :, None, None].expand(1, 1, 24, 24, 24).contiguous()
    }
    objective, losses = GeneratorObjective(1.0, 0.25), []
    update = GeneratorUpdate(build_optimizer(network, 3e-3), objective, IterationGate(100))
    trainer = AdversarialTrainer("cpu", 1, itertools.repeat(image), 60, network, 1, train_handlers=[update])
    trainer.add_event_handler(
        Events.ITERATION_COMPLETED, lambda e: losses.append(float(e.current.losses["recon_loss"]))
    )
    trainer.run()
    assert losses[-1] < 0.5 * losses[0]


def test_a_rehearsal_runs_every_network_behind_the_gate_and_leaves_no_bit_changed(tiny_vqgan, small_run):
    results, sizes = [], []
    for rehearses in (False, True):
        torch.manual_seed(1)
        network = tiny_vqgan()
        network.quantizer.initialized.fill_(False)
        network.quantizer._forget()
        run = small_run(network, iterations=3, start=1, warmup=2)
        calls = [count_calls(part) for part in (network.encoder, *run.discriminators.values())]
        if rehearses:
            sizes.append(run.trainer.rehearse((2, 1, 24, 24, 24)))
            assert all(calls) and run.trainer.state.iteration == 0
            assert all(weight.grad is None for weight in [*network.parameters()])
            assert all(weight.grad is None for weight in run.discriminators.parameters())
        run.run()
        results.append([*network.state_dict().values(), *run.discriminators.state_dict().values()])
    weights = [*network.parameters(), *run.discriminators.parameters()]
    assert sizes == [2 * 4 * sum(weight.numel() for weight in weights)]
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


def test_a_rehearsal_that_fails_leaves_the_run_as_it_was(tiny_vqgan, small_run):
    run = small_run(tiny_vqgan(), iterations=3, start=1)
    before = copy_of(run.network)

    def refuse(*_):
        raise torch.OutOfMemoryError

    run.discriminators["video"].register_forward_pre_hook(refuse)
    with pytest.raises(torch.OutOfMemoryError):
        run.trainer.rehearse((2, 1, 24, 24, 24))
    assert run.trainer.state.iteration == 0 and run.trainer.current.losses == {}
    assert all(torch.equal(tensor, before[name]) for name, tensor in run.network.state_dict().items())
