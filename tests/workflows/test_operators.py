"""What schedulers, full disks and second starts do to a run: real processes, one line each, nothing torn."""

import json
import signal

import pytest

from bundle.run.lock import lock_folder, release_folder

FULL = 20_000  # bytes: more than a record, less than a result


@pytest.fixture
def start(python, dataset, checkpoint, out, tmp_path):
    """Starts a workflow whose config names a function of `killing` in its list `initialize`."""

    def start(workflow, function=None, **arguments):
        settings = {"dataset_dir": dataset, "output_dir": out}
        settings |= {} if workflow == "base" else {"ckpt_path": checkpoint}
        settings |= {"keep_latents": "true"} if workflow == "encode" else {}
        if function is None:
            return python.run(workflow, **settings)
        overlay = tmp_path / "overlay.json"
        step = {"_target_": f"tests.workflows.killing.{function}", **arguments}
        overlay.write_text(json.dumps({"+initialize": [step]}))
        return python.run(workflow, str(overlay), **settings)

    return start


@pytest.fixture
def held(out):
    """The output folder of a run that goes on in another process, this one."""
    out.mkdir()
    (out / "run.json").write_text('{"status": "running"}')
    lock_folder(out)
    yield out
    release_folder(out)


def record_of(folder):
    return json.loads((folder / "run.json").read_text(encoding="utf-8"))


def hidden(folder):
    return [str(path) for path in folder.rglob(".*")]


def test_a_second_training_in_a_folder_is_refused_and_touches_nothing(start, held, listing):
    done = start("base")

    assert done.code != 0 and "Traceback" not in done.output
    assert done.last_line.startswith(f"error: {held}: process ")
    assert sorted(listing(held)) == [".lock", "run.json"] and record_of(held) == {"status": "running"}


def test_a_second_reconstruction_in_a_folder_keeps_a_record_of_its_own(start, held):
    start("inference").expect_success()

    (record,) = held.glob("run_*.json")
    assert json.loads(record.read_text(encoding="utf-8"))["status"] == "finished"
    assert record_of(held) == {"status": "running"}
    assert len(list(held.glob("p*/ct_recon.nii.gz"))) == 3


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP], ids=str)
def test_a_stopped_reconstruction_is_stopped_in_its_record_too(start, out, number):
    done = start("inference", "arm", moment="finishing", count=3, number=int(number))

    assert done.code == 128 + number, done.output[-3000:]
    told = f"stopped by {number.name}; the files written so far are complete"
    assert done.last_line == f"error: {told}" and "Traceback" not in done.output
    assert (record_of(out)["status"], record_of(out)["error"]) == ("stopped", told)
    assert len(list(out.glob("p*/ct_recon.nii.gz"))) == 1 and hidden(out) == []


@pytest.mark.parametrize(
    ("workflow", "result"), [("inference", "ct_recon.nii.gz"), ("encode", "ct_codes.npz")]
)
def test_a_full_disk_is_one_line_with_the_name_of_the_file(start, out, workflow, result):
    done = start(workflow, "limit_files", size=FULL)

    assert done.code != 0 and "Traceback" not in done.output, done.output[-3000:]
    told = f"{out}/p0/{result}: cannot be written (File too large); make room or give another --output_dir"
    assert done.last_line == f"error: {told}"
    assert record_of(out)["status"] == "failed"
    assert list(out.glob("p*/*")) == [] and hidden(out) == []


def test_a_log_that_is_a_link_is_refused_and_its_target_left_alone(start, out):
    out.mkdir()
    target = out.parent / "precious"
    target.write_text("data")
    (out / "inference.log").symlink_to(target)

    done = start("inference")

    assert done.code != 0 and "Traceback" not in done.output
    assert done.last_line.startswith(f"error: {out}/inference.log: cannot be written (it is a link")
    assert target.read_text(encoding="utf-8") == "data"
