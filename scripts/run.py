"""The strict front door: `monai.bundle run` that checks its overrides before anything else happens.

    python -m scripts.run --config_file configs/train.yaml --dataset_dir DIR --learning_rate 1.0e-4

Arguments are those of `python -m monai.bundle run`; an override that no listed config file knows is refused
with the nearest known name. From another folder: `python /path/to/bundle/scripts/run.py ...`. There, config
files are looked up below the bundle if they are not where you are, and `bundle_root` points to the bundle.
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
    # The workflow's own check and the record of the run read the command line again: complete it in place.
    sys.argv[1:] = [*arguments, *arguments_from_anywhere(Command(arguments))]
    command = Command(sys.argv[1:])
    check_overrides(command)
    monai.bundle.run(**command.settings)


if __name__ == "__main__":
    main(sys.argv[1:])
