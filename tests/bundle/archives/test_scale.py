"""Ten times as many volumes take ten times as long and as much memory; in `make test-ranks`."""

import cProfile
import gc
import gzip
import pstats
import shutil
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
import pytest

from bundle.archives.board import Board
from bundle.archives.cases import archive_cases
from bundle.archives.queue import VolumeQueue
from bundle.data.cases import find
from bundle.data.cases.provenance import Provenance, write_provenance
from bundle.data.latents.file import EncodedVolume, Record, write_latent_file
from bundle.data.volumes.header_text import header_as_text
from bundle.run.rules import network_settings
from transforms.codes import SaveCodesd
from transforms.save import SaveImageCTPAd

pytestmark = pytest.mark.ranks
MOST = 11  # times as much for ten times as many volumes
SLOWER = 1.25  # times as long for a volume when ten times as many have been seen
MADE = Provenance("ab" * 32, network_settings("lite", "ema", 64, -1000, 1000))


class Archive(NamedTuple):
    """Volumes, and a result for each, so that a run has nothing to compute."""

    data: Path
    out: Path
    make_saver: Callable[..., Any]

    def cases(self, on_error: str) -> list[dict[str, str]]:
        return archive_cases(self.data, Board(), on_error)

    def queue(self, cases: list[dict[str, str]], on_error: str) -> VolumeQueue:
        saver = self.make_saver(self.out, self.data)
        queue = VolumeQueue(cases, Board(), saver, self.data, self.out, True, on_error)
        if hasattr(saver, "check"):  # as configs/inference.yaml does
            saver.check(queue.cases_to_check, lambda: MADE)
        return queue

    def go_through(self, on_error: str) -> None:
        """Lists the volumes, claims each and finds its result there, if it has one."""
        queue = self.queue(self.cases(on_error), on_error)
        for _ in queue:
            queue.count_written()
        summary = queue.finish()
        assert summary["existing"] + summary["written"] == len(queue.cases) > 0


def nifti_files(folder: Path, count: int, _: Any) -> None:
    content = gzip.compress(nib.Nifti1Image(np.zeros((8, 8, 8), np.int16), np.eye(4)).to_bytes())
    for number in range(count):
        patient = folder / f"p{number:06d}"
        patient.mkdir(parents=True)
        (patient / "ct.nii.gz").write_bytes(content)


def series_in_folders(folder: Path, count: int, write_dicom: Any) -> None:
    for number in range(count):
        write_one_series(folder / f"p{number:06d}", number, write_dicom)


def series_in_one_folder(folder: Path, count: int, write_dicom: Any) -> None:
    for number in range(count):
        write_one_series(folder, number, write_dicom)


def write_one_series(folder: Path, number: int, write_dicom: Any) -> None:
    tags = {"0010|0020": f"MRN-{number:06d}"}
    write_dicom(folder, np.zeros((3, 8, 8), np.int16), tags=tags, series=f"1.2.3.{number:06d}")


def codes_saver(out: Path, data: Path) -> SaveCodesd:
    return SaveCodesd("pred", "image", out, data, lambda: MADE)


def nifti_saver(out: Path, data: Path) -> SaveImageCTPAd:
    return SaveImageCTPAd("pred", out, data_root_dir=data)


def dicom_saver(out: Path, data: Path) -> SaveImageCTPAd:
    return SaveImageCTPAd("pred", out, data_root_dir=data, output_format="dicom", settings=MADE.settings)


def write_results(archive: Archive) -> None:
    eye, header = np.eye(4).tolist(), header_as_text(nib.Nifti1Header())
    record = Record("ct", (8, 8, 8), eye, eye, *header, dict(MADE.settings), MADE.model_sha256)
    codes = archive.out / "one_codes.npz"
    write_latent_file(codes, EncodedVolume(record, np.zeros((2, 2, 2), np.uint16), None))
    saver = archive.make_saver(archive.out, archive.data)
    for case in archive.cases("skip"):
        path = saver.path_of(case["image"])
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(saver, SaveCodesd):
            shutil.copyfile(codes, path)
            continue
        if saver.output_format == "nifti":
            path.write_bytes(b"a result")
            write_provenance(path, MADE)


# what the volumes are, how their results are saved, and the fewer of them
KINDS = {
    "encode NIfTI": (nifti_files, codes_saver, 1_000),
    "reconstruct NIfTI": (nifti_files, nifti_saver, 100),
    "encode DICOM": (series_in_folders, codes_saver, 30),
    "reconstruct DICOM": (series_in_folders, dicom_saver, 30),
    "encode DICOM of one folder": (series_in_one_folder, codes_saver, 30),
}


@pytest.fixture(scope="module")
def archives(tmp_path_factory, write_dicom) -> Callable[[str], Iterator[Archive]]:
    """Makes two archives of a kind, the second of ten times as many volumes, once."""
    made: dict[str, list[Archive]] = {}

    def make(kind: str) -> list[Archive]:
        if kind not in made:
            write_volumes, make_saver, few = KINDS[kind]
            folder = tmp_path_factory.mktemp("scale")
            made[kind] = []
            for count in (few, 10 * few):
                archive = Archive(folder / f"{count}" / "data", folder / f"{count}" / "out", make_saver)
                archive.out.mkdir(parents=True)
                write_volumes(archive.data, count, write_dicom)
                write_results(archive)
                made[kind].append(archive)
        return made[kind]

    return make


def calls(work: Callable[[], None]) -> float:
    """Calls of functions: a measure of time that does not depend on who else uses the machine."""
    profile = cProfile.Profile()
    profile.runcall(work)
    return pstats.Stats(profile).total_calls


def peak_bytes(work: Callable[[], None]) -> float:
    gc.collect()
    gc.freeze()  # beside the many objects of this process, garbage of the work would hardly ever be collected
    tracemalloc.start()
    work()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    gc.unfreeze()
    return peak


@pytest.mark.parametrize("on_error", ["stop", "skip"])
@pytest.mark.parametrize("kind", KINDS)
def test_calls_and_memory_grow_with_the_number_of_volumes(archives, kind, on_error):
    sizes = archives(kind)
    for measure in (calls, peak_bytes):
        few, many = (measure(lambda archive=archive: archive.go_through(on_error)) for archive in sizes)
        print(f"\n{kind}, {on_error}: {many / few:.1f} times the {measure.__name__}")
        assert many <= MOST * few, measure.__name__
    assert many / (10 * KINDS[kind][2]) < 10_000  # bytes per volume


def fastest(seconds: list[float]) -> list[float]:
    """CPU seconds of the quickest volume of the first tenth and of the last: others cannot make them less."""
    tenth = len(seconds) // 10
    return [min(seconds[:tenth]), min(seconds[-tenth:])]


def test_the_last_of_10_000_volumes_take_no_longer_than_the_first(archives, monkeypatch):
    """What runs in C and does not show among the calls, such as lists that are searched or copied."""
    archive = archives("encode NIfTI")[1]
    moments: dict[str, list[float]] = {"find": [], "check its header": [], "claim and compare": []}

    def noting(stage: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def note(*args: Any) -> Any:
            moments[stage].append(time.process_time())
            return call(*args)

        return note

    monkeypatch.setattr(find, "_found", noting("find", find._found))
    monkeypatch.setattr(find, "read_header", noting("check its header", find.read_header))
    monkeypatch.setattr(VolumeQueue, "_is_wanted", noting("claim and compare", VolumeQueue._is_wanted))
    quickest: dict[str, list[list[float]]] = {stage: [] for stage in moments}
    for _ in range(3):
        archive.go_through("stop")
        for stage, found in moments.items():
            quickest[stage].append(fastest(np.diff(found).tolist()))
            found.clear()

    for stage, rounds in quickest.items():
        first, last = np.min(rounds, axis=0)
        print(f"\n{stage}: {1e6 * first:.0f} us of CPU per volume, {1e6 * last:.0f} us for the last")
        assert last <= SLOWER * first, stage
