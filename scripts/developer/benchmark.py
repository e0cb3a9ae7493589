"""Measures, on this machine, the speed and memory that this project promises: `make bench`.

    python -m scripts.developer.benchmark [--only SECTION ...] [--output outputs/benchmark]
    python -m scripts.developer.benchmark --only training variants peers stages --minutes 8

The second command is for a GPU that is there for a short time; `--tiny` tries its sections anywhere.
Prints tables and writes `benchmark.json`. The two sides of a comparison alternate in one run; figures are
medians. On a GPU the training section runs the default preset on 128^3 patches, on a CPU `lite` on 64^3.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bundle.run.atomic import write_text
from bundle.run.console import CommandParser, tell
from scripts.developer.benchmarks.data import measure_data
from scripts.developer.benchmarks.measuring import describe_machine, has_time, limit_time
from scripts.developer.benchmarks.network import (
    measure_halo,
    measure_presets,
    measure_stages,
    measure_volume,
)
from scripts.developer.benchmarks.peers import measure_peers
from scripts.developer.benchmarks.quantizer import measure_codebook, measure_quantizer
from scripts.developer.benchmarks.scaling import measure_scaling
from scripts.developer.benchmarks.training import measure_training, measure_variants

BUNDLE_ROOT = Path(__file__).resolve().parents[2]
CAN_BE_TINY = ("training", "variants", "peers", "stages", "scaling")


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line of this module."""
    sections: dict[str, Callable[..., Any]] = {
        "quantizer": measure_quantizer,
        "codebook": measure_codebook,
        "presets": measure_presets,
        "halo": measure_halo,
        "training": measure_training,
        "variants": measure_variants,
        "peers": measure_peers,
        "stages": measure_stages,
        "scaling": measure_scaling,
        "volume": measure_volume,
        "data": measure_data,
    }
    parser = CommandParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=sections, default=list(sections))
    parser.add_argument("--output", type=Path, default=BUNDLE_ROOT / "outputs" / "benchmark")
    parser.add_argument("--minutes", type=float, help="begin no further row of a table after this time")
    parser.add_argument(
        "--tiny", action="store_true", help=f"smallest sizes; only for {', '.join(CAN_BE_TINY)}"
    )
    given = parser.parse_args(arguments)
    if given.tiny and (wrong := sorted(set(given.only) - set(CAN_BE_TINY))):
        parser.error(f"--tiny goes with --only {' '.join(CAN_BE_TINY)}, got {' '.join(wrong)}")
    if given.minutes is not None:
        limit_time(given.minutes)
    given.output.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {"machine": describe_machine()}
    tell(json.dumps(results["machine"]))
    for name in given.only:
        if not has_time():
            tell(f"\n{name}: no time left")
            continue
        results[name] = (
            sections[name](given.output, tiny=True) if given.tiny else sections[name](given.output)
        )
        tell(f"\n{name}\n{as_table(results[name])}", flush=True)
        write_text(given.output / "benchmark.json", json.dumps(results, indent=2) + "\n")
    tell(f"\nwrote {given.output / 'benchmark.json'}")


def as_table(rows: list[dict[str, Any]]) -> str:
    """Writes rows with the same keys as a Markdown table."""
    if not rows:
        return "no time left"
    lines = ["| " + " | ".join(rows[0]) + " |", "|" + "---|" * len(rows[0])]
    for row in rows:
        cells = [
            f"{value:,.3g}"
            if isinstance(value, float)
            else f"{value:,}"
            if isinstance(value, int)
            else value or ""
            for value in row.values()
        ]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
