"""Runs `monai.bundle run` strictly: overrides are checked before anything else happens.

    python -m scripts.run --config_file configs/train.yaml --dataset_dir DIR --learning_rate 1.0e-4

The arguments are those of `python -m monai.bundle run`. An override that no listed config file knows is
refused, and the nearest known name suggested. From another folder: `python /path/to/bundle/scripts/run.py
...`. Then config files that are not in the current folder are looked up in the bundle, and `bundle_root`
points to the bundle.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

BUNDLE_ROOT = Path(__file__).resolve().parent.parent


def main(arguments: Sequence[str]) -> None:
    """Checks the overrides, then runs the workflow as `python -m monai.bundle run` does."""
    if not arguments or {"-h", "--help"} & set(arguments):
        print(__doc__)
        return
    # Started as a file, Python looks beside it first: a scripts/inspect.py would hide the standard module.
    elsewhere = [path for path in sys.path if path != str(BUNDLE_ROOT / "scripts")]
    sys.path[:] = [str(BUNDLE_ROOT), *elsewhere]
    import monai.bundle

    from bundle.run.command import Command, arguments_from_anywhere, check_overrides
    from bundle.run.record import report_error

    sys.excepthook = report_error
    # The workflow's own check and the run's record read the command line again, so it is completed in place.
    sys.argv[1:] = [*arguments, *arguments_from_anywhere(Command(arguments))]
    command = Command(sys.argv[1:])
    check_overrides(command)
    monai.bundle.run(**command.settings)


if __name__ == "__main__":
    main(sys.argv[1:])
