"""`python -m scripts.prepare` as a whole, killed with several volumes at hand, then run again."""

import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bundle.data.volumes.reading import read_volume
from bundle.run.atomic import LEFTOVER_S
from scripts.prepare import main, prepare

ROOT = Path(__file__).resolve().parents[2]
N_VOLUMES = 20
LIMIT_S = 480  # imports alone take minutes where many processes share two cores
# What is killed, and by how many workers the volumes are packed.
KILLS = {"group": 2, "parent": 1, "worker": 1}


def running(group: int) -> dict[int, str]:
    """Command lines of the processes of a group by their ids, those that have ended left out."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, _, of_group = (folder / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()[:3]
            if int(of_group) == group and state != "Z":
                found[int(folder.name)] = (folder / "cmdline").read_text(encoding="utf-8")
        except (OSError, ValueError):
            continue
    return found


def wait_for(condition) -> None:
    end = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.002)


def kill(process: subprocess.Popen, kind: str) -> None:
    if kind == "group":
        os.killpg(process.pid, signal.SIGKILL)
    elif kind == "worker":
        words = running(process.pid)
        os.kill(next(pid for pid in words if "spawn_main" in words[pid]), signal.SIGKILL)
    else:
        process.kill()


def start(source: Path, store: Path, num_workers: int) -> subprocess.Popen:
    words = ["-m", "scripts.prepare", source, "--output", store, "--num_workers", num_workers]
    return subprocess.Popen(
        [sys.executable, *map(str, words)],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        start_new_session=True,
    )


def kill_at(process: subprocess.Popen, store: Path, kind: str, delay_s: float) -> str:
    """Waits until the store holds a file, finished or not, kills, and returns what was said."""
    wait_for(lambda: any((store / "volumes").glob("*.ctpa")) or process.poll() is not None)
    time.sleep(delay_s)
    kill(process, kind)
    said = process.communicate(timeout=LIMIT_S)[1]
    wait_for(lambda: not running(process.pid))  # nobody waits for ever for a parent that is gone
    return said


def contents(store: Path) -> dict[str, bytes]:
    paths = [path for path in store.rglob("*") if path.is_file() and not path.name.startswith(".")]
    return {str(path.relative_to(store)): path.read_bytes() for path in paths}


def unnumbered(found: dict[str, bytes]) -> dict[str, bytes]:
    """The contents by the names that files have before the run ends and numbers them."""
    return {re.sub(r"volume_\d+-", "", name): content for name, content in found.items()}


def leftovers(store: Path) -> list[Path]:
    return list(store.rglob(".*"))


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A data set whose volumes take some 0.1 s each."""
    folder = tmp_path_factory.mktemp("data")
    voxels = np.random.default_rng(0).integers(-1000, 1000, (128, 128, 96)).astype(np.int16)
    for number in range(N_VOLUMES):
        path = folder / f"p{number}" / "ct.nii"
        path.parent.mkdir()
        nib.save(nib.Nifti1Image(np.roll(voxels, number, 0), np.diag([0.7, 0.8, 1.5, 1])), path)
    return folder


@pytest.fixture(scope="module")
def whole(source, tmp_path_factory):
    """What a run leaves that nothing disturbs."""
    store = tmp_path_factory.mktemp("whole")
    prepare(source, store, 0)
    found = contents(store)
    assert sum(name.endswith(".ctpa") for name in found) == N_VOLUMES
    return found


@pytest.fixture(scope="module")
def killed(source, tmp_path_factory):
    """One store per kind of death, with what was said; the runs share the cores."""
    moments = random.Random(0)
    stores = {kind: tmp_path_factory.mktemp(kind) for kind in KILLS}
    delays_s = {kind: moments.uniform(0, 0.05) for kind in KILLS}

    def run(kind):
        process = start(source, stores[kind], KILLS[kind])
        said = kill_at(process, stores[kind], kind, delays_s[kind])
        return stores[kind], process.returncode, said

    with ThreadPoolExecutor(len(KILLS)) as threads:
        return dict(zip(KILLS, threads.map(run, KILLS), strict=True))


@pytest.mark.ranks
@pytest.mark.parametrize("kind", KILLS)
def test_after_a_kill_the_next_run_ends_as_if_nothing_had_happened(killed, source, whole, kind):
    store = killed[kind][0]
    for name, content in unnumbered(contents(store)).items():
        assert content == unnumbered(whole)[name], "what bears its name is complete"

    prepare(source, store, 0)

    assert contents(store) == whole


def test_a_kill_between_a_volume_and_its_counts_loses_nothing(source, whole, tmp_path):
    store = tmp_path / "store"
    prepare(source, store, 0)
    next((store / "volumes").glob("*.json")).unlink()

    prepare(source, store, 0)

    assert contents(store) == whole


@pytest.mark.ranks
def test_a_lost_worker_is_told_in_one_line(killed):
    _, code, said = killed["worker"]

    lines = [line for line in re.split(r"[\r\n]+", said) if line.startswith(("error", "Traceback"))]
    assert code == 1 and len(lines) == 1
    assert lines[0].startswith("error: a process was killed, usually out of memory; run it again with")


def test_a_signal_lets_the_volume_at_hand_be_finished(source, whole, tmp_path, capsys):
    store = tmp_path / "store"
    before = signal.signal(signal.SIGTERM, lambda *_: None)  # should it come late, it must not end the tests
    sender = threading.Thread(target=lambda: (wait_for(lambda: contents(store)), signal.raise_signal(15)))
    sender.start()
    try:
        code = main([str(source), "--output", str(store), "--num_workers", "0"])
    finally:
        sender.join()
        signal.signal(signal.SIGTERM, before)

    assert code == 128 + signal.SIGTERM
    error = capsys.readouterr().err.splitlines()[-1]
    assert re.search(r"error: stopped by SIGTERM with \d+ volumes? left; run it again, it goes on", error)
    assert leftovers(store) == [] and contents(store).items() < unnumbered(whole).items()


def test_what_killed_runs_leave_is_removed_when_nobody_writes_it_any_more(source, tmp_path):
    folder = tmp_path / "store" / "volumes"
    folder.mkdir(parents=True)
    old, fresh = folder / ".unfinished_00000000_a.ctpa", folder / ".unfinished_00000001_a.ctpa"
    for path in (old, fresh):
        path.write_bytes(b"part")
    past = time.time() - LEFTOVER_S - 1
    os.utime(old, (past, past))

    prepare(source / "p0", tmp_path / "store", 0)

    assert leftovers(tmp_path / "store") == [fresh]
    assert read_volume(next(folder.glob("[!.]*.ctpa"))).voxels.shape == (128, 128, 96)
