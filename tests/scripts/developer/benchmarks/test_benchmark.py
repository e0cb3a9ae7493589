"""The program that measures, at the smallest sizes; what it measures there says nothing."""

import json

import pytest
from PIL import Image

from scripts.developer import benchmark
from scripts.developer.benchmarks import measuring, scaling, training


@pytest.fixture(autouse=True)
def unlimited():
    yield
    measuring._ends.clear()


@pytest.mark.ranks  # not for its processes, but for its seconds
def test_the_sections_for_a_gpu_can_be_tried_anywhere(tmp_path, monkeypatch, capsys):
    variants = {name: training.VARIANTS[name] for name in ("L1 only", "LPIPS in bf16")}
    monkeypatch.setattr(training, "VARIANTS", variants)

    words = ["--only", "training", "variants", "stages", "--tiny"]
    benchmark.main([*words, "--output", str(tmp_path)])

    found = json.loads((tmp_path / "benchmark.json").read_text(encoding="utf-8"))
    assert [row["phase"] for row in found["training"]] == ["L1 only", "adversarial"]
    assert [row["variant"] for row in found["variants"]] == list(variants)
    (volume,) = found["stages"]
    stages = ("read", "scale", "encode", "decode", "scale back", "write")
    assert volume["all"] == pytest.approx(sum(volume[stage] for stage in stages))
    assert (tmp_path / "reconstruction" / "phantom_48x48x40_recon.nii.gz").is_file()
    assert "| LPIPS in bf16 |" in capsys.readouterr().out


def test_no_row_begins_when_the_time_is_over(tmp_path, capsys):
    benchmark.main(["--only", "training", "peers", "--tiny", "--minutes", "0", "--output", str(tmp_path)])

    assert "training: no time left" in capsys.readouterr().out


def test_a_section_that_has_no_smallest_size_says_so(tmp_path, capsys):
    with pytest.raises(SystemExit):
        benchmark.main(["--only", "data", "--tiny", "--output", str(tmp_path)])

    assert "--tiny goes with --only training variants" in capsys.readouterr().err


def test_growth_is_drawn_with_a_column_for_each_quantity(tmp_path):
    rows = [
        {"grows": name, "value": value, "seconds": value / 100, "MiB": 0.0}
        for name in ("patients", "codes")
        for value in (10, 100)
    ]
    scaling.draw(rows, tmp_path / "scaling.png")

    with Image.open(tmp_path / "scaling.png") as picture:
        assert picture.size == (640, 520)
