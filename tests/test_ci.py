"""The CI's script with a `make` that only writes down what it is asked."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MAKE = """#!/bin/sh
echo "$@" >> "$ASKED"
for target; do :; done
case "$target" in
  test) echo "7 passed in 3.21s";;
  test-label) echo "5 passed in 1.23s";;
  venv) mkdir -p "${1#VENV=}";;
  venv-label) mkdir -p "${2#LABEL=}";;
esac
test "$target" != "$FAILING"
"""
TARGETS = ["venv", "test", "test-ranks", "test-slow", "test-viewer", "venv-label", "test-label"]
FIFTEEN_DAYS_S = 15 * 24 * 3600


@pytest.fixture
def run(tmp_path):
    """`.ci/run`; `failing` is the target that make cannot make."""
    (tmp_path / "make").write_text(MAKE, encoding="utf-8")
    (tmp_path / "make").chmod(0o755)
    (tmp_path / "apt-get").write_text("#!/bin/sh\nexit 100\n", encoding="utf-8")  # no browser can be had
    (tmp_path / "apt-get").chmod(0o755)

    def run(failing: str = "") -> subprocess.CompletedProcess:
        given = {"ASKED": str(tmp_path / "asked"), "FAILING": failing, "XDG_CACHE_HOME": str(tmp_path)}
        path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
        environment = {**os.environ, **given, "PATH": path}
        words = ["bash", str(ROOT / ".ci" / "run")]
        return subprocess.run(words, env=environment, capture_output=True, encoding="utf-8", timeout=60)

    return run


def targets(tmp_path: Path) -> list[str]:
    asked = (tmp_path / "asked").read_text(encoding="utf-8").splitlines()
    return [line.split()[-1] for line in asked]


def test_all_suites_run_and_their_closing_lines_stand_last(run, tmp_path):
    done = run()

    assert done.returncode == 0, done.stderr
    assert targets(tmp_path) == TARGETS
    assert done.stdout.splitlines()[-2:] == ["5 passed in 1.23s", "7 passed in 3.21s"]


@pytest.mark.parametrize("failing", TARGETS)
def test_a_failure_of_any_step_fails_the_run_and_ends_it(run, tmp_path, failing):
    done = run(failing)

    assert done.returncode != 0
    assert targets(tmp_path)[-1] == failing


@pytest.mark.skipif(shutil.which("flock") is None, reason="needs flock")
def test_environments_of_the_last_two_weeks_stay_and_older_ones_go(run, tmp_path):
    run()
    cache = tmp_path / "ctpa_vqgan"
    own = {path for path in cache.iterdir() if path.is_dir()}
    for path in own:
        (path / "kept").touch()
    for name in ("venv-old", "venv-new", "unrelated"):
        (cache / name / "bin").mkdir(parents=True)
    for path in (*own, cache / "venv-old", cache / "unrelated"):
        state = path.stat()
        os.utime(path, (state.st_atime, state.st_mtime - FIFTEEN_DAYS_S))

    done = run()

    assert done.returncode == 0, done.stderr
    left = {path.name for path in cache.iterdir() if path.is_dir()}
    assert [(path / "kept").exists() for path in own] == [True, True]
    assert left == {path.name for path in own} | {"venv-new", "unrelated"}
