"""A run that goes wrong is told of once, with the troubleshooting page's advice; a healthy run is not."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from ignite.engine import Engine, Events

from bundle.engines.advice import ADVICE
from bundle.engines.events import IterationState
from bundle.handlers.diagnosis import HealthWatch
from bundle.handlers.gate import IterationGate
from bundle.networks.quantizer import CodeCounts
from bundle.run.rules import SettingsError

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
CODES = 100
EVEN = torch.ones(CODES)
ONE_CODE = torch.zeros(CODES).index_fill_(0, torch.tensor([0]), 1000.0)


def watched(curves: list[dict[str, float]], counts=EVEN, validations=(), gate=0, **settings):
    """Events of a run with these losses per iteration, and these figures after each iteration."""
    events, kept = [], {}
    validator = Engine(lambda *_: None)
    trainer = Engine(lambda engine, _: engine.current.losses.update(curves[engine.state.iteration - 1]))
    trainer.current, trainer.validator, trainer.keep = IterationState(), validator, kept.__setitem__
    trainer.network = SimpleNamespace(
        quantizer=SimpleNamespace(counts=lambda: CodeCounts(counts, torch.zeros(())), num_embeddings=CODES)
    )
    watch = HealthWatch(
        IterationGate(gate),
        {"image": 1.0, "video": 0.5},
        note_event=lambda **event: events.append(event),
        **{"window": 2, **settings},
    )
    watch.attach(trainer)
    if validations:

        @trainer.on(Events.ITERATION_COMPLETED)
        def validate(engine):
            validator.add_event_handler(Events.EPOCH_COMPLETED(once=1), lambda e: None)
            validator.state.metrics = validations[engine.state.iteration - 1]
            watch.judge_validation(validator, engine)

    trainer.run([0], epoch_length=len(curves))
    return events, kept["health_watch"]


def losses(recon=0.1, gen=0.0, disc=1.2):
    return {
        "recon_loss": torch.tensor(recon),
        "gen_loss": torch.tensor(gen),
        "disc_loss": torch.tensor(disc),
    }


WELL = [losses()] * 6


@pytest.mark.parametrize(
    ("kind", "curves", "counts"),
    [
        ("discriminator_explodes", [*WELL[:2], *[losses(disc=15.1)] * 4], EVEN),
        ("discriminator_dead", [*WELL[:2], *[losses(disc=0.02)] * 4], EVEN),
        ("generator_explodes", [*WELL[:2], *[losses(gen=15.1)] * 4], EVEN),
        ("generator_explodes", [*WELL[:2], *[losses(gen=-15.1)] * 4], EVEN),
        ("generator_explodes", [*WELL[:2], *[losses(recon=1.01)] * 4], EVEN),
        ("codebook_collapse", [{"recon_loss": torch.tensor(0.1)}] * 6, ONE_CODE),
    ],
)
def test_each_illness_is_told_once_with_its_advice(caplog, kind, curves, counts):
    events, watch = watched(curves, counts, codebook_floor=0.02)

    assert [event["kind"] for event in events] == [kind]
    assert events[0]["advice"] == ADVICE[kind].change
    assert [ADVICE[kind].change in record.getMessage() for record in caplog.records] == [True]
    assert watch.state_dict()["reported"] == [kind]


@pytest.mark.parametrize(
    "curves",
    [
        WELL,
        [losses(disc=14.9), losses(disc=14.9)],
        [losses(disc=0.031), losses(disc=0.031)],
        [losses(gen=-14.9), losses(gen=-14.9)],
        [losses(), losses(disc=28.0)],  # one bad iteration in a window is not the window
        [{"recon_loss": torch.tensor(0.1)}] * 4,  # below the gate
        [{}, {}],  # all skipped
    ],
)
def test_what_is_well_is_not_reported(curves):
    assert watched(curves)[0] == []


def figures(*psnr, lpips=0.5):
    return [{"val/psnr": value, "val/lpips": lpips} for value in psnr]


@pytest.mark.parametrize(
    ("validations", "gate", "told"),
    [
        (figures(20, 21, 20, 20, 20, 20), 2, [5]),
        (figures(20, 21, 20, 20, 22, 20), 2, []),
        (figures(20, 19, 19, 19, 19, 19), 4, []),  # only two validations behind the gate
        ([*figures(20, 20, 20), *figures(20, lpips=0.4), *figures(20, 20)], 1, []),
    ],
)
def test_no_improvement_behind_the_gate_is_told_when_neither_psnr_nor_lpips_rises(validations, gate, told):
    events, _ = watched(WELL, validations=validations, gate=gate, no_improvement_validations=3)

    assert [event["iteration"] for event in events] == told
    assert [event["kind"] for event in events] == ["no_improvement"] * len(told)


def test_a_resumed_run_does_not_tell_again():
    events, watch = watched([losses(disc=0.0)] * 2)
    again = HealthWatch(IterationGate(0), {"image": 1.0})
    again.load_state_dict(watch.state_dict())

    again._report(SimpleNamespace(state=SimpleNamespace(iteration=9)), "discriminator_dead", "")
    assert again.reported == ["discriminator_dead"] and len(events) == 1
    assert again.best["recon_loss"] == pytest.approx(0.1)


@pytest.mark.parametrize("name", ["window", "no_improvement_validations"])
def test_a_count_below_one_is_refused(name):
    with pytest.raises(SettingsError, match=r"must be a whole number from 1, got 0"):
        HealthWatch(IterationGate(0), {"image": 1.0}, **{name: 0})


@pytest.mark.parametrize("kind", ADVICE)
def test_the_troubleshooting_page_gives_the_same_advice(kind):
    assert f"| {ADVICE[kind].what} | {ADVICE[kind].change} |" in PAGE


def test_the_advice_names_settings_that_exist():
    train = (ROOT / "configs" / "train.yaml").read_text(encoding="utf-8")
    named = {
        word
        for advice in ADVICE.values()
        for word in re.findall(r"`(?:--)?([a-z0-9]+(?:_[a-z0-9]+)+)[ `]", advice.change)
    }
    assert {"r1_gamma", "oom_policy", "gan_feat_weight"} <= named
    assert [name for name in named if not re.search(rf"^{name}:", train, re.MULTILINE)] == []
