import json
import logging
import os
import signal
import sys
from pathlib import Path

import pytest

from bundle.run.atomic import UnwritableError
from bundle.run.command import UnknownOverrideError
from bundle.run.record import OutputFolderError, finish_run, report_error, run_script, start_run

CONFIG = """
bundle_root: .
output_dir: {output}
max_epochs: 5
seed: 3
resuming: false
api_token: null
tracking_uri: null
network: {{_target_: torch.nn.Linear, in_features: 2, out_features: 2}}
run:
- _target_: bundle.engines.settings.check_settings
- {{_target_: bundle.run.record.start_run, output_dir: '@output_dir', seed: '@seed', resuming: '@resuming'}}
- "$@network(torch.ones(@max_epochs, 2))"
- _target_: bundle.run.record.finish_run
  output_dir: '@output_dir'
  figures: {{outputs: "$@network.out_features", bad: "$float('nan')"}}
"""


@pytest.fixture
def config_file(tmp_path):
    path = tmp_path / "train.yaml"
    path.write_text(CONFIG.format(output=tmp_path / "out"), encoding="utf-8")
    return path


@pytest.fixture
def output_dir(tmp_path):
    yield str(tmp_path / "out")
    for handler in list(logging.getLogger().handlers):
        if str(getattr(handler, "path", "")).startswith(str(tmp_path)):
            logging.getLogger().removeHandler(handler)
            handler.close()


@pytest.fixture
def run_monai(python):
    return lambda *words: python("monai.bundle", "run", *map(str, words))


def record_of(folder):
    return json.loads((Path(folder) / "run.json").read_text(encoding="utf-8"))


def test_plain_monai_run_refuses_an_unknown_id_and_writes_nothing(run_monai, config_file, tmp_path):
    done = run_monai("--config_file", config_file, "--maxepochs", 9)

    assert done.code != 0
    assert done.output.splitlines()[-1].endswith("got `maxepochs` (did you mean `max_epochs`?)")
    assert "Traceback" not in done.output
    assert not (tmp_path / "out").exists()


def test_plain_monai_run_leaves_a_record_without_secrets(run_monai, config_file, tmp_path):
    secrets = ["--api_token", "abc123", "--tracking_uri=https://me:abc123@host/x"]

    done = run_monai("--config_file", config_file, "--max-epochs", 2, "--network#bias", "False", *secrets)

    record = record_of(tmp_path / "out")
    assert done.code == 0, done.output
    assert (record["status"], record["seed"]) == ("finished", 3)
    assert record["figures"] == {"outputs": 2, "bad": "nan"}
    assert record["overrides"]["max_epochs"] == record["config"]["max_epochs"] == 2
    assert record["config"]["network"]["bias"] is False
    assert "--max-epochs" in record["command_line"]
    assert {"torch", "monai", "pytorch-ignite", "numpy", "python", "ctpa_vqgan"} <= set(record["versions"])
    assert "abc123" not in json.dumps(record)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["run.json", "training.log"]


def test_failed_run_says_why_in_its_last_line_in_the_log_and_in_the_record(run_monai, config_file, tmp_path):
    done = run_monai("--config_file", config_file, "--network::in_features", 3)

    message = done.output.splitlines()[-1]
    assert done.code != 0
    assert message.startswith("error: RuntimeError: mat1 and mat2")
    assert "Traceback" in done.output
    record = record_of(tmp_path / "out")
    assert record["status"] == "failed"
    assert done.output.rstrip().endswith(record["error"])
    assert "RuntimeError: mat1 and mat2" in (tmp_path / "out" / "training.log").read_text(encoding="utf-8")


def test_folder_with_checkpoints_is_refused_and_left_as_it_is(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.pt").touch()

    with pytest.raises(
        OutputFolderError, match="holds the checkpoints of another run; give another --output_dir"
    ):
        start_run(str(tmp_path))

    assert [path.name for path in tmp_path.iterdir()] == ["checkpoints"]


def test_resumed_run_keeps_log_and_record_of_the_earlier_start(output_dir):
    start_run(output_dir, seed=1)
    logging.getLogger().error("first part")
    finish_run(output_dir, {"val/psnr": 20.0})
    (Path(output_dir) / "checkpoints").mkdir()
    (Path(output_dir) / "checkpoints" / "last.pt").touch()

    start_run(output_dir, seed=2, resuming=True)
    logging.getLogger().error("second part")
    finish_run(output_dir, {"val/psnr": 28.0})

    log = (Path(output_dir) / "training.log").read_text(encoding="utf-8")
    record = record_of(output_dir)
    assert log.index("first part") < log.index("second part")
    assert (record["seed"], record["figures"]) == (2, {"val/psnr": 28.0})
    assert [(start["seed"], start["figures"]) for start in record["earlier_starts"]] == [
        (1, {"val/psnr": 20.0})
    ]


def test_finished_run_no_longer_logs_into_its_folder(output_dir):
    start_run(output_dir, log_file="inference.log")
    finish_run(output_dir)

    logging.getLogger().error("afterwards")

    assert "afterwards" not in (Path(output_dir) / "inference.log").read_text(encoding="utf-8")


def test_without_a_command_line_the_given_settings_are_recorded(output_dir):
    start_run(output_dir, settings={"max_epochs": 7, "device": Path("cpu"), "db_password": "x"})
    finish_run(output_dir)

    assert record_of(output_dir)["config"] == {"max_epochs": 7, "device": "cpu", "db_password": "***"}


def test_only_the_first_process_of_a_distributed_run_writes(output_dir, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")

    start_run(output_dir)
    finish_run(output_dir, {"val/psnr": 1.0})

    assert not Path(output_dir).exists()


def test_a_part_of_a_job_has_a_record_and_a_log_of_its_own_on_every_rank(output_dir, monkeypatch):
    monkeypatch.setenv("RANK", "1")

    start_run(output_dir, log_file="encode.log", part="rank_1")
    logging.getLogger().error("of rank 1")
    finish_run(output_dir, {"written": 3})

    folder = Path(output_dir)
    assert sorted(path.name for path in folder.iterdir()) == ["encode_rank_1.log", "run_rank_1.json"]
    assert "of rank 1" in (folder / "encode_rank_1.log").read_text(encoding="utf-8")
    record = json.loads((folder / "run_rank_1.json").read_text(encoding="utf-8"))
    assert (record["status"], record["figures"]) == ("finished", {"written": 3})


def test_a_second_run_adds_to_the_log_of_the_first(output_dir):
    for number in (1, 2):
        start_run(output_dir, shared=True)
        logging.getLogger().error("run %d", number)
        finish_run(output_dir)

    log = (Path(output_dir) / "training.log").read_text(encoding="utf-8")
    assert log.index("run 1") < log.index("run 2")


def test_own_errors_are_reported_in_one_line(capsys):
    try:
        raise RuntimeError("Failed to instantiate component") from UnknownOverrideError("`x` must be known")
    except RuntimeError as error:
        report_error(type(error), error, error.__traceback__)

    assert capsys.readouterr().err == "error: `x` must be known\n"


def test_ctrl_c_before_training_begins_is_one_line(capsys):
    report_error(KeyboardInterrupt, KeyboardInterrupt(), None)

    assert capsys.readouterr().err == "error: stopped by Ctrl-C; what had been written is whole\n"


def test_a_record_that_cannot_be_written_does_not_hide_the_error(output_dir, capsys, monkeypatch):
    start_run(output_dir)

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    error = UnknownOverrideError("`x` must be known")
    report_error(type(error), error, None)

    assert capsys.readouterr().err == "error: `x` must be known\n"
    assert record_of(output_dir)["status"] == "running"


def test_a_reader_that_has_left_is_no_error(tmp_path):
    """As in `python -m scripts.inspect DIR | head`."""
    reader, writer = os.pipe()
    os.close(reader)
    errors = tmp_path / "stderr"
    child = os.fork()
    if child == 0:
        os.dup2(writer, 1)
        os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT), 2)
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)
        try:
            run_script(lambda: print("a table of many lines"))
        except BaseException as error:  # what Python's own end would do
            try:
                report_error(type(error), error, None)
            except SystemExit as ended:
                os._exit(int(ended.code))
        os._exit(0)
    os.close(writer)

    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 128 + signal.SIGPIPE
    assert errors.read_text(encoding="utf-8") == ""


def test_a_record_that_lies_does_not_end_a_resumed_run(output_dir):
    Path(output_dir).mkdir()
    (Path(output_dir) / "run.json").write_text("[1, 2")

    start_run(output_dir, resuming=True)
    finish_run(output_dir)

    assert record_of(output_dir)["status"] == "finished"


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").touch()

    with pytest.raises(UnwritableError, match="file/out: cannot be written .Not a directory.; make room or"):
        start_run(str(tmp_path / "file" / "out"))


def test_a_log_on_a_full_disk_is_one_warning_and_the_run_goes_on(output_dir, capsys, monkeypatch):
    start_run(output_dir)
    (log,) = [h for h in logging.getLogger().handlers if getattr(h, "path", None) is not None]
    log.stream.close()
    log.stream = open("/dev/full", "w", buffering=1)

    logging.getLogger().error("one")
    logging.getLogger().error("two")
    finish_run(output_dir)

    told = capsys.readouterr().err
    assert told.count("training.log: cannot be written ([Errno 28] No space left on device)") == 1
    assert "Traceback" not in told
