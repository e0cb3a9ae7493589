"""What happens to a run stands in its record, in order, and nothing of the record is lost."""

import json

from bundle.run.record import finish_run, note_event, start_run


def test_events_are_added_in_order_and_survive_the_end_of_the_run(tmp_path):
    start_run(str(tmp_path), seed=7)
    note_event(str(tmp_path), "non_finite", iteration=3, what="loss")
    note_event(str(tmp_path), "rollback", iteration=5)
    finish_run(str(tmp_path), {"val/psnr": 30.0})

    record = json.loads((tmp_path / "run.json").read_text(encoding="utf-8"))
    assert [(event["kind"], event["iteration"]) for event in record["events"]] == [
        ("non_finite", 3),
        ("rollback", 5),
    ]
    assert record["status"] == "finished" and record["seed"] == 7


def test_other_ranks_and_folders_without_a_run_are_left_alone(tmp_path, monkeypatch):
    note_event(str(tmp_path), "rollback")
    start_run(str(tmp_path))
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    note_event(str(tmp_path), "rollback")
    monkeypatch.delenv("WORLD_SIZE")
    finish_run(str(tmp_path))

    assert "events" not in json.loads((tmp_path / "run.json").read_text(encoding="utf-8"))
