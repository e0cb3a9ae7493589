import pytest
from ignite.engine import Engine

from bundle.handlers.gate import IterationGate

S = 10


@pytest.mark.parametrize(
    ("iteration", "discriminators_train", "generator_share"),
    [(S - 1, False, 0.0), (S, False, 0.0), (S + 1, True, 1.0)],
)
def test_both_sides_open_at_the_first_iteration_after_the_start(
    iteration, discriminators_train, generator_share
):
    gate = IterationGate(S)
    assert gate(Engine(lambda *_: None), iteration) is discriminators_train
    assert gate.generator_share(iteration) == generator_share


@pytest.mark.parametrize(
    ("iteration", "discriminators_train", "generator_share"),
    [(S, False, 0.0), (S + 1, True, 0.0), (S + 5, True, 0.0), (S + 6, True, 1.0)],
)
def test_while_the_discriminators_pretrain_the_generator_s_terms_stay_closed(
    iteration, discriminators_train, generator_share
):
    gate = IterationGate(S, pretrain_iterations=5)
    assert gate(Engine(lambda *_: None), iteration) is discriminators_train
    assert gate.generator_share(iteration) == generator_share


@pytest.mark.parametrize(
    ("iteration", "share"), [(S, 0.0), (S + 1, 0.25), (S + 2, 0.5), (S + 4, 1.0), (S + 5, 1.0)]
)
def test_the_ramp_rises_linearly_to_one(iteration, share):
    assert IterationGate(S, ramp_iterations=4).generator_share(iteration) == share


def test_the_ramp_counts_from_the_end_of_pretraining():
    gate = IterationGate(S, pretrain_iterations=3, ramp_iterations=2)
    assert [gate.generator_share(S + n) for n in (3, 4, 5, 6)] == [0.0, 0.5, 1.0, 1.0]


def test_a_start_of_zero_is_open_from_the_first_iteration():
    assert IterationGate(0).generator_share(1) == 1.0


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ((-1, 0, 0), "discriminator_iter_start"),
        ((0, -1, 0), "discriminator_pretrain_iters"),
        ((0, 0, -1), "adversarial_ramp_iters"),
    ],
)
def test_negative_counts_are_refused_by_name(arguments, name):
    with pytest.raises(ValueError, match=f"`{name}` must be a whole number from 0, got -1"):
        IterationGate(*arguments)
