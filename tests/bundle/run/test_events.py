"""What happens to a run stands in its record, in order, and nothing of the record is lost."""

import json

from bundle.run.record import finish_run, note_event, start_run


def test_events_are_added_in_order_and_survive_the_end_of_the_run(tmp_path):
    start_run(str(tmp_path), seed=7)
    note_event("non_finite", iteration=3, what="loss")
    note_event("rollback", iteration=5)
    finish_run(str(tmp_path), {"val/psnr": 30.0})

    record = json.loads((tmp_path / "run.json").read_text(encoding="utf-8"))
    assert [(event["kind"], event["iteration"]) for event in record["events"]] == [
        ("non_finite", 3),
        ("rollback", 5),
    ]
    assert record["status"] == "finished" and record["seed"] == 7


def test_other_ranks_write_no_event_nor_does_anybody_before_or_after_a_run(tmp_path, monkeypatch):
    note_event("rollback")
    start_run(str(tmp_path))
    finish_run(str(tmp_path))
    note_event("rollback")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    start_run(str(tmp_path))
    note_event("rollback")

    assert "events" not in json.loads((tmp_path / "run.json").read_text(encoding="utf-8"))
