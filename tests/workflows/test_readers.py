"""Training with reading processes, as on every machine but a laptop: it comes to its end."""

import shutil

import pytest


@pytest.fixture(scope="module")
def alone(python, dataset, tmp_path_factory):
    """A run that reads its patches itself, and its patch store."""
    folder = tmp_path_factory.mktemp("alone")
    python.run(
        "base", dataset_dir=dataset, cache_dir=folder / "cache", output_dir=folder / "out"
    ).expect_success()
    return folder


def test_a_run_with_readers_ends_and_takes_them_with_it(python, dataset, alone, tmp_path):
    settings = {"dataset_dir": dataset, "cache_dir": tmp_path / "cache", "num_workers": 2}
    done = python.run_cold("base", **settings, output_dir=tmp_path / "out")

    done.expect_success()
    curves = [(folder / "out" / "metrics.csv").read_text(encoding="utf-8") for folder in (alone, tmp_path)]
    assert curves[0] == curves[1]


def test_a_run_that_a_damaged_volume_ends_does_not_wait_for_its_readers(python, dataset, alone, tmp_path):
    cache = tmp_path / "cache"
    shutil.copytree(alone / "cache", cache)
    for path in cache.glob("*.ctpa"):
        content = bytearray(path.read_bytes())
        content[: len(content) // 2] = bytes(len(content) // 2)
        path.write_bytes(content)

    settings = {"dataset_dir": dataset, "cache_dir": cache, "num_workers": 2}
    done = python.run_cold("base", **settings, output_dir=tmp_path / "out")

    assert done.code == 1
    assert "is damaged" in done.last_line
