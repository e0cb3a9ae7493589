"""Notes in `run.json` what happens to a run on its way."""

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bundle.run.record import write_atomically


def note_event(output_dir: str, kind: str, **details: Any) -> None:
    """Adds an event to `events` in the `run.json` of a run that `start_run` has begun; rank 0 only.

    Args:
        output_dir: the folder that was given to `start_run`.
        kind: e.g. `rollback`.
        details: numbers, strings and lists of them.
    """
    path = Path(output_dir) / "run.json"
    if int(os.environ.get("RANK", "0")) == 0 and path.is_file():
        record = json.loads(path.read_text(encoding="utf-8"))
        event = {"time": datetime.now(UTC).isoformat(timespec="seconds"), "kind": kind, **details}
        record["events"] = [*record.get("events", []), event]
        write_atomically(path, json.dumps(record, indent=2) + "\n")
