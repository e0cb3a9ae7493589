"""What the README and the guides state is so: paths, links, settings and defaults, curves, overrides."""

import itertools
import re
import shlex
from pathlib import Path

import pytest
import yaml

from bundle.handlers.curves import TAGS
from bundle.run.command import Command, check_overrides
from tests.guide import GUIDE, ROOT, TEXTS, prose_of

PROSE = prose_of(GUIDE)
CODE = re.findall(r"`([^`\n]+)`", PROSE)
CONFIGS = {
    name: yaml.safe_load((ROOT / "configs" / f"{name}.yaml").read_text(encoding="utf-8"))
    for name in ("train", "inference", "encode", "decode", "train_with_discriminator", "multi_gpu_train")
}
ADVERSARIAL = "['configs/train.yaml','configs/train_with_discriminator.yaml']"
# Tests of the commands look for these behind the commands that write them.
LEFT_BY_RUNS = {
    "run.json",
    "last.pt",
    "previous_1.pt",
    "best_1.pt",
    "best_3.pt",
    "training.log",
    "metrics.csv",
    "model.pt",
    "prepare_report.csv",
    "run_shard_3_of_8.json",
    "skipped.csv",
    "dataset.json",  # of nnU-Net's data sets
}
SUFFIX = r"\.(?:py|yaml|json|md|txt|sh|toml|png|csv|log|pt)"
NAMED = {word for code in CODE for word in re.findall(rf"^[\w./-]*\w{SUFFIX}$", code)}
PATHS = sorted(
    path for path in NAMED if Path(path).name not in LEFT_BY_RUNS and not path.startswith("outputs/")
)
# All but the first belong to the launcher, to scripts.reconstruct, to MONAI's command and to scripts.install.
NO_OVERRIDES = {"--id value", "--background", "--smoke", "--compare", "--args_file FILE"}
NO_OVERRIDES |= {"--window lung", "--window mediastinum", "--window pe"}
NO_OVERRIDES |= {"--half", '--name "WORDS"'}
OVERRIDES = sorted({code for code in CODE if code.startswith("--")} - NO_OVERRIDES)


def settings_rows() -> dict[str, tuple[str, str]]:
    """Default and explanation by id, out of the table of settings."""
    _, _, table = TEXTS["docs/settings.md"].partition("| id | default | unit | what it does |\n")
    rows = [
        [cell.strip() for cell in line.strip("|\n").split(" | ")]
        for line in table.split("\n\n")[0].splitlines()
    ]
    return {row[0].strip("` "): (row[1].strip("` "), row[3]) for row in rows[1:]}


ROWS = settings_rows()


def scalars(config: dict) -> set[str]:
    """The settings: what stands above the first component, which is where a person edits."""
    return set(itertools.takewhile(lambda name: not isinstance(config[name], dict), config))


@pytest.mark.parametrize("path", PATHS)
def test_a_file_that_is_named_exists(path):
    assert (
        (ROOT / path).is_file() or list((ROOT / "bundle").rglob(path)) or list((ROOT / "configs").glob(path))
    )


def test_links_lead_somewhere():
    assert [link for page in DOCS for link in dead_links(page)] == []


DOCS = [*sorted(ROOT.glob("*.md")), ROOT / "models" / "MODEL_CARD.md", *sorted((ROOT / "docs").glob("*.md"))]


def dead_links(page: Path) -> list[str]:
    links = re.findall(r"\]\(([^)\s]+)\)", prose_of(page.read_text(encoding="utf-8")))
    dead = [link for link in links if not link.startswith("https://") and not leads_somewhere(page, link)]
    return [f"{page.name}: {link}" for link in dead]


def leads_somewhere(page: Path, link: str) -> bool:
    name, _, anchor = link.partition("#")
    target = page.parent / name if name else page
    return target.is_file() and (not anchor or anchor in anchors(target))


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", prose_of(page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_setting_of_the_configs_stands_in_the_table_and_nothing_else():
    assert set(ROWS) == set().union(*map(scalars, CONFIGS.values()))


@pytest.mark.parametrize("name", ROWS)
def test_a_default_is_that_of_the_config(name):
    default, _ = ROWS[name]
    value = next(config[name] for config in CONFIGS.values() if name in config)

    if isinstance(value, str) and value.startswith("$"):
        assert value.startswith(default.split("...")[0])
    else:
        assert yaml.safe_load(default) == value


@pytest.mark.parametrize("name", CONFIGS["train_with_discriminator"])
def test_the_value_that_the_adversarial_overlay_sets_is_told_in_the_table(name):
    default, explanation = ROWS[name]
    value = CONFIGS["train_with_discriminator"][name]

    told = (
        value.removesuffix("'").removeprefix("$@bundle_root + '/outputs/vqgan_patches")
        if isinstance(value, str)
        else str(value)
    )
    assert told in f"{default} {explanation}"


@pytest.mark.parametrize("words", OVERRIDES)
def test_an_override_that_is_recommended_is_known(words):
    words = words if " " in words else f"{words} x"

    check_overrides(
        Command(["--config_file", f"{ADVERSARIAL[:-1]},'configs/inference.yaml']", *shlex.split(words)])
    )


def test_every_curve_is_in_the_table_and_every_curve_in_the_table_exists():
    told = {word for word in re.findall(r"\b(?:train|val|codebook)/\w+", PROSE) if not (ROOT / word).exists()}

    assert told == set(TAGS) - {"train/learning_rate"}
