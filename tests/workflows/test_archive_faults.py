"""Archives whose processes are killed, stopped, refused or started again: `make test-ranks`."""

import json
import os
import signal
import subprocess
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bundle.data.volumes.phantom import write_phantom
from bundle.run.lock import lock_folder, release_folder
from tests.commands import ENVIRONMENT, ROOT
from tests.workflows.torchrun import torchrun

pytestmark = pytest.mark.ranks
N_VOLUMES, CODES = 6, 64
FILES = ["configs/encode.yaml", "configs/multi_gpu_encode.yaml", "configs/smoke.yaml"]
KILLED = -signal.SIGKILL


def write_scans(folder: Path, count: int) -> Path:
    for number in range(count):
        write_phantom(folder / f"p{number}" / "ct.nii.gz", (28, 28, 24), np.eye(4), seed=number)
    return folder


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    return write_scans(tmp_path_factory.mktemp("archive"), N_VOLUMES)


@pytest.fixture(scope="module")
def expected(python, scans, checkpoint, tmp_path_factory):
    """What one process makes of them."""
    folder = tmp_path_factory.mktemp("alone")
    python.run("encode", dataset_dir=scans, ckpt_path=checkpoint, output_dir=folder).expect_success()
    return codes_in(folder)


@pytest.fixture
def words(scans, checkpoint, out, tmp_path):
    """The words behind `python -m` that encode into `out`; `step` is called in `initialize`.

    With a step every process gets at least one volume, so that what the step prepares does happen.
    """
    shared = {"_target_": "tests.workflows.killing.share_work", "folder": str(tmp_path)}

    def words(step=None, dataset_dir=scans, **settings):
        overlay = tmp_path / "overlay.json"
        overlay.write_text(json.dumps({"+initialize": [step, shared]} if step else {}), encoding="utf-8")
        settings |= {"dataset_dir": dataset_dir, "ckpt_path": checkpoint, "output_dir": out}
        settings |= {"num_embeddings": CODES}
        overrides = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
        return ["monai.bundle", "run", "--config_file", str([*FILES, str(overlay)]), *overrides]

    return words


@pytest.fixture
def encode(python, words):
    """Encodes with two processes; how each ended."""
    return lambda *args, **settings: python.on_ranks(2, *words(*args, **settings))


def codes_in(folder: Path) -> dict[str, bytes]:
    return {path.parent.name: path.read_bytes() for path in folder.glob("p*/ct_codes.npz")}


def record_of(folder: Path) -> dict:
    return json.loads((folder / "run.json").read_text(encoding="utf-8"))


def armed(count: int, rank: int, number: int = signal.SIGKILL) -> dict:
    """Ends a process when a result, or before it its record, is complete but not in its place."""
    settings = {"moment": "finishing", "count": count, "rank": rank, "number": int(number)}
    return {"_target_": "tests.workflows.killing.arm", **settings}


@pytest.mark.parametrize(
    ("rank", "told"),
    [
        (0, "the first process of this job has ended or does not answer"),
        (1, "waited 2 s for other processes"),
    ],
)
def test_a_killed_process_ends_the_job_in_words_and_the_same_line_again_makes_exactly_the_rest(
    encode, expected, out, rank, told
):
    ended = encode(armed(2, rank), store_timeout_s=2)
    before = codes_in(out)
    again = encode()

    assert ended[rank].code == KILLED
    assert ended[1 - rank].code == 1 and told in ended[1 - rank].last_line, ended[1 - rank].output[-3000:]
    assert "Traceback" not in ended[1 - rank].output
    assert len(before) < N_VOLUMES and before.items() <= expected.items()
    assert [one.code for one in again] == [0, 0], again[0].output[-3000:]
    assert codes_in(out) == expected
    figures = record_of(out)["figures"]
    assert (figures["existing"], figures["written"]) == (len(before), N_VOLUMES - len(before))


def test_torchrun_starts_a_killed_process_again_and_the_queue_goes_on(words, expected, out):
    """The store of torchrun still has the counters of the first attempt."""
    in_first_attempt = "$2 if torch.os.environ['TORCHELASTIC_RESTART_COUNT'] == '0' else 99"
    command = torchrun("-m", *words({**armed(2, 1), "count": in_first_attempt}), restarts=1)

    done = subprocess.run(
        command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, encoding="utf-8", timeout=600
    )

    assert done.returncode == 0, done.stderr[-3000:]
    assert codes_in(out) == expected
    figures = record_of(out)["figures"]
    assert figures["existing"] + figures["written"] == N_VOLUMES
    assert len(record_of(out)["earlier_starts"]) == 1  # it was killed


def test_a_stopped_process_is_stopped_in_its_record_and_leaves_no_torn_file(encode, expected, out):
    ended = encode(armed(2, 0, signal.SIGTERM))

    assert ended[0].code == 128 + signal.SIGTERM
    assert record_of(out)["status"] == "stopped"
    assert codes_in(out).items() <= expected.items()
    assert [str(path) for path in out.rglob(".*")] == []


def test_a_second_job_in_a_folder_is_refused_in_one_line_and_writes_no_result(encode, out):
    out.mkdir()
    lock_folder(out)
    try:
        ended = encode()
    finally:
        release_folder(out)

    assert [one.code for one in ended] == [1, 1]
    assert ended[0].last_line.startswith(f"error: {out}: process {os.getpid()} on ")
    assert codes_in(out) == {}


def test_what_ends_a_process_stands_in_its_record_or_in_that_of_the_first(encode, out, tmp_path):
    """A header that is sound says nothing of the voxels."""
    dataset = write_scans(tmp_path / "data", 1)
    image = nib.load(dataset / "p0" / "ct.nii.gz")
    voxels = image.get_fdata(dtype=np.float32)
    voxels[0, 0, 0] = np.nan
    nib.save(nib.Nifti1Image(voxels, image.affine), dataset / "p0" / "ct.nii.gz")

    ended = encode(dataset_dir=dataset, store_timeout_s=2)

    told = f"{dataset / 'p0' / 'ct.nii.gz'}: holds 1 NaN or infinite voxels"
    assert sum(told in one.last_line for one in ended) >= 1
    records = [json.loads(path.read_text(encoding="utf-8")) for path in out.glob("run*.json")]
    assert any(told in record.get("error", "") for record in records)


def test_a_bad_header_refuses_the_job_before_anything_is_written(encode, out, tmp_path):
    dataset = write_scans(tmp_path / "data", 1)
    (dataset / "text.nii").write_text("text", encoding="utf-8")

    ended = encode(dataset_dir=dataset)

    assert [one.code for one in ended] == [1, 1]
    assert "1 of 2 volumes cannot be used" in ended[0].message
    assert "resume_from_checkpoint" not in ended[1].output
    assert not out.exists()


def test_a_full_disk_of_one_process_ends_the_other_at_once_with_the_reason(encode, dataset, out):
    limit = {"_target_": "tests.workflows.killing.limit_files", "size": 20_000, "rank": 1}

    ended = encode(limit, dataset_dir=dataset, keep_latents="true")

    assert [one.code for one in ended] == [1, 1]
    assert "cannot be written (File too large); make room" in ended[1].last_line
    assert ended[0].last_line.startswith("error: process 1 of 2: ")
    assert "cannot be written (File too large); make room" in record_of(out)["error"]


def test_two_processes_and_shards_reconstruct_what_one_process_does_and_skip_what_it_skips(
    python, checkpoint, out, tmp_path
):
    dataset = write_scans(tmp_path / "data", 4)
    bad = dataset / "p1" / "ct.nii.gz"
    bad.write_bytes(bad.read_bytes()[:500])
    settings = {"dataset_dir": dataset, "ckpt_path": checkpoint, "on_error": "skip"}
    files = ["configs/inference.yaml", "configs/multi_gpu_inference.yaml", "configs/smoke.yaml"]

    alone = python.run("inference", output_dir=tmp_path / "alone", **settings)
    settings |= {"output_dir": out, "shard_count": 2}
    words = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    run = ("monai.bundle", "run", "--config_file", str(files), *words, "--shard_index")
    codes = [[one.code for one in python.on_ranks(2, *run, str(shard))] for shard in range(2)]

    assert alone.code == 3 and codes == [[0, 0], [3, 0]]
    results = [
        {path.relative_to(folder): path.read_bytes() for path in folder.glob("p*/*")}
        for folder in (tmp_path / "alone", out)
    ]
    assert results[0] == results[1] and len(results[0]) == 6
    lists = [path.read_text(encoding="utf-8") for path in (tmp_path / "alone").glob("skipped*")]
    assert lists == [(out / "skipped_shard_1_of_2.csv").read_text(encoding="utf-8")]
