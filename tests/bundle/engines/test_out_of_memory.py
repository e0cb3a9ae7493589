"""Iterations that run out of memory: repeated smaller with the same result, or ended with advice."""

import pytest
import torch

from bundle.engines.advice import ADVICE
from bundle.engines.out_of_memory import MemoryFallback, TrainingMemoryError
from bundle.run.rules import SettingsError


def exhaust(module, limit, iterations, engine):
    """The module cannot take more than `limit` samples in these iterations."""

    def refuse(_, inputs):
        if engine.state.iteration in iterations and len(inputs[0]) > limit:
            raise torch.OutOfMemoryError(f"{len(inputs[0])} samples are too many")

    module.register_forward_pre_hook(refuse)


def run_of(small_run, network, micro, policy="degrade", weights=(1.0, 0.0, 4.0), length=3, **settings):
    torch.manual_seed(1)
    run = small_run(network, length, start=1, batch=4, micro=micro, size=32, weights=weights)
    events = []
    run.trainer.memory_fallback = MemoryFallback(
        policy, weights[1], note_event=lambda **event: events.append(event), **settings
    )
    run.events = events
    return run


def tensors(run):
    return [*run.network.state_dict().values(), *run.discriminators.state_dict().values()]


def test_halved_from_the_start_equals_a_run_that_was_configured_so_bit_by_bit(tiny_vqgan, small_run):
    results = {}
    for micro in (4, 1):
        torch.manual_seed(1)
        run = run_of(small_run, tiny_vqgan(), micro)
        exhaust(run.network.encoder, 1, range(99), run.trainer)
        results[micro] = tensors(run.run()), run
    assert all(torch.equal(a, b) for a, b in zip(results[4][0], results[1][0], strict=True))
    assert [(e["kind"], e["iteration"]) for e in results[4][1].events] == [("out_of_memory", 1)] * 2
    assert results[4][1].trainer.memory_fallback.state_dict() == {"halvings": 2, "switched_off": []}
    assert results[1][1].events == []


@pytest.mark.parametrize("part", ["encoder", "image discriminator"])
def test_an_iteration_that_fails_halfway_is_repeated_with_the_result_of_the_undisturbed_run(
    tiny_vqgan, small_run, part
):
    """Gradients of the repeated iteration, codebook included, within the rounding of micro-batches."""
    gradients = []
    for limit in (4, 2 if part == "encoder" else 6):  # the slice discriminator sees three slices per sample
        torch.manual_seed(1)
        run = run_of(small_run, tiny_vqgan(), 4, length=2)
        exhaust(run.network.encoder if part == "encoder" else run.discriminators["image"],
                limit if limit != 4 else 99, {2}, run.trainer)  # fmt: skip
        run.run()
        gradients.append(
            [torch.cat([p.grad.flatten() for p in module.parameters()])
             for module in (run.network, run.discriminators)]
            + [run.network.quantizer.embedding, run.trainer.current.losses["loss"]]
        )  # fmt: skip
        assert run.trainer.state.iteration == 2
    assert run.trainer.memory_fallback.halvings == 1
    for undisturbed, repeated in zip(*gradients, strict=True):
        assert (undisturbed - repeated).norm() <= 1e-5 * undisturbed.norm()


def test_random_numbers_of_a_repeated_iteration_are_those_of_its_first_attempt():
    fallback, drawn = MemoryFallback("degrade"), []

    def attempt():
        drawn.append(float(torch.rand(())))
        if len(drawn) == 1:
            raise torch.OutOfMemoryError

    fallback.run(attempt, 1, 2, 2)
    assert drawn[0] == drawn[1]


def test_then_the_volume_discriminator_and_lpips_are_left_out_in_this_order_and_then_it_ends(caplog):
    events = []
    fallback = MemoryFallback("degrade", 0.5, 0.1, lambda **event: events.append(event))

    def attempt():
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    with pytest.raises(TrainingMemoryError, match="iteration 7 does not fit .* lower `patch_size`"):
        fallback.run(attempt, 7, batch_size=2, configured=4)
    steps = ["micro-batch halved to 1", "the volume discriminator is left out", "LPIPS is left out"]
    assert all(step in event["step"] for step, event in zip(steps, events, strict=True))
    assert all(
        event["step"] in record.getMessage() for event, record in zip(events, caplog.records, strict=True)
    )


def test_without_the_volume_discriminator_training_goes_on_with_the_other(tiny_vqgan, small_run):
    run = run_of(small_run, tiny_vqgan(), 1, weights=(1.0, 0.5, 4.0))
    exhaust(run.discriminators["video"], 0, range(99), run.trainer)
    initial = {name: value.clone() for name, value in run.discriminators.state_dict().items()}
    run.run()

    moved = {
        name.split(".")[0]
        for name, value in run.discriminators.state_dict().items()
        if not torch.equal(value, initial[name])
    }
    assert moved == {"image"}
    assert run.trainer.state.iteration == 3


def test_without_any_discriminator_left_the_generator_trains_alone(tiny_vqgan, small_run):
    run = run_of(small_run, tiny_vqgan(), 1, weights=(0.0, 0.5, 4.0))
    exhaust(run.discriminators["video"], 0, range(99), run.trainer)
    run.run()
    assert set(run.trainer.current.losses) == {"loss", "recon_loss", "commitment_loss"}


def test_a_resumed_run_stays_small(tiny_vqgan, small_run):
    first, second = MemoryFallback("degrade", 0.5), run_of(small_run, tiny_vqgan(), 4, length=1)
    first.halvings, first.switched_off = 1, ["video"]
    second.trainer.memory_fallback.load_state_dict(first.state_dict())
    samples = []
    second.network.encoder.register_forward_hook(
        lambda module, inputs, output: samples.append(len(inputs[0]))
    )
    second.run()
    assert samples == [2, 2]
    assert second.trainer.memory_fallback.switched_off == ["video"]


def test_stop_ends_the_run_with_the_advice_and_moves_nothing(tiny_vqgan, small_run):
    run = run_of(small_run, tiny_vqgan(), 4, policy="stop")
    exhaust(run.network.encoder, 3, {1}, run.trainer)
    initial = [tensor.clone() for tensor in tensors(run)]
    with pytest.raises(TrainingMemoryError) as told:
        run.run()
    assert ADVICE["out_of_memory"].change in str(told.value)
    assert "4 samples are too many" in str(told.value)
    assert all(torch.equal(a, b) for a, b in zip(tensors(run), initial, strict=True))


def test_an_optimizer_that_does_not_fit_ends_the_run_with_the_advice(tiny_vqgan, small_run):
    run = run_of(small_run, tiny_vqgan(), 4, policy="degrade")

    def refuse(**_):
        raise torch.OutOfMemoryError("no room for moments")

    run.trainer.network.quantizer.update = refuse
    with pytest.raises(TrainingMemoryError, match="a part that cannot be repeated.*no room for moments"):
        run.run()


def test_other_errors_pass():
    with pytest.raises(RuntimeError, match="shapes"):
        MemoryFallback("degrade").run(lambda: (_ for _ in ()).throw(RuntimeError("shapes")), 1, 1, 1)


def test_an_unknown_policy_is_refused():
    with pytest.raises(SettingsError, match="`oom_policy` must be one of stop, degrade, got 'pray'"):
        MemoryFallback("pray")
