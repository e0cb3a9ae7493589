"""The data set of latents: what a patch holds, where it lies, and on which side its patient is."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from bundle.data.cases.patients import SharedPatientsError, validation_patients
from bundle.data.cases.split import DatasetError, split_cases
from bundle.data.latents.dataset import LatentDataError, LatentDataset, split_encoded
from bundle.data.latents.file import EncodedVolume, LatentFileError, Record, write_latent_file
from bundle.data.latents.statistics import (
    StatisticsError,
    measure_statistics,
    read_statistics,
    statistics_for,
)
from bundle.data.volumes.header_text import header_as_text
from bundle.run.names import patient_hash

SETTINGS = {"preset": "lite", "quantizer": "ema", "num_embeddings": 32, "hu_min": -1000.0, "hu_max": 1000.0}
MODEL, OTHER_MODEL = "a" * 64, "b" * 64
AFFINE = np.array([[0.7, 0.0, 0.1, -40.0], [0.0, 0.8, 0.0, 12.5], [0.0, 0.2, 1.5, 7.0], [0.0, 0.0, 0.0, 1.0]])
CODES = torch.randn(32, 8, generator=torch.Generator().manual_seed(1)) * torch.arange(1, 9) + 5
NAMES = [f"p{n}" for n in range(12)]


def write_codes(path, cells=(7, 6, 5), seed=0, latents=True, model=MODEL, patient=""):
    generator = np.random.default_rng(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = tuple(4 * size - 1 for size in cells)
    affine = AFFINE.tolist()
    header = header_as_text(nib.Nifti1Header())
    record = Record("ct", shape, affine, affine, *header, SETTINGS, model, patient)
    kept = generator.normal(3, 2, (8, *cells)).astype(np.float16) if latents else None
    volume = EncodedVolume(record, generator.integers(0, 32, cells).astype(np.uint16), kept)
    write_latent_file(path, volume)
    return volume


@pytest.fixture
def volumes(tmp_path):
    """Two volumes of different sizes, by their path."""
    return {
        str(tmp_path / "codes" / name / "ct_codes.npz"): write_codes(
            tmp_path / "codes" / name / "ct_codes.npz", cells, seed
        )
        for seed, (name, cells) in enumerate({"p0": (7, 6, 5), "p1": (5, 9, 8)}.items())
    }


@pytest.fixture
def data(volumes):
    return [{"image": path} for path in volumes]


@pytest.fixture
def dataset(data, tmp_path):
    def make(source="codes", patch_size=None, **more):
        return LatentDataset(data, tmp_path / "cache", source, patch_size, CODES, **more)

    return make


def expected_latents(volume, source):
    if source == "indices":
        return torch.from_numpy(volume.indices.astype(np.int64))[None]
    if source == "latents":
        return torch.from_numpy(volume.latents.astype(np.float32))
    return CODES[volume.indices.astype(np.int64)].permute(3, 0, 1, 2)


def test_the_cache_may_lie_below_the_home_folder(data, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    LatentDataset(data, "~/cache", "indices").prepare()
    assert len(list((tmp_path / "cache").iterdir())) == len(data)


@pytest.mark.parametrize("source", ["codes", "latents", "indices"])
def test_a_whole_volume_holds_what_the_file_holds(volumes, dataset, source):
    for item, volume in zip([dataset(source)[n] for n in range(2)], volumes.values(), strict=True):
        torch.testing.assert_close(item["image"], expected_latents(volume, source), rtol=0, atol=0)
        assert item["start"].tolist() == [0, 0, 0]
        np.testing.assert_array_equal(item["affine"], AFFINE)


@pytest.mark.parametrize("source", ["codes", "latents", "indices"])
def test_a_patch_is_the_box_of_the_whole_at_its_start_in_values_and_position(dataset, source):
    whole, patches = dataset(source), dataset(source, [16, 12, 8])
    for sample in range(20):
        patch, volume = patches[sample], whole[patches.draw(sample)[0]]
        x, y, z = patch["start"].tolist()
        box = (slice(None), slice(x, x + 4), slice(y, y + 3), slice(z, z + 2))
        for key in ("image", "position"):
            torch.testing.assert_close(patch[key], volume[key][box], rtol=0, atol=0)


def test_positions_are_cell_centres_from_face_to_face(dataset):
    position = dataset()[0]["position"]

    assert position.shape == (3, 7, 6, 5)
    for axis, size in enumerate((7, 6, 5)):
        line = position[axis].movedim(axis, 0)[:, 0, 0]
        torch.testing.assert_close(line, torch.linspace(-1 + 1 / size, 1 - 1 / size, size))
        assert (position[axis] == line.view([-1 if a == axis else 1 for a in range(3)])).all()


def test_the_affine_of_a_patch_puts_its_first_voxel_where_it_is_in_the_volume(dataset):
    patch = dataset(patch_size=8)[3]

    voxel = torch.tensor([1.0, 2.0, 3.0, 1.0], dtype=torch.float64)
    in_volume = voxel + torch.tensor([*(4 * patch["start"]), 0])
    torch.testing.assert_close(patch["affine"] @ voxel, torch.from_numpy(AFFINE) @ in_volume)


def test_patch_n_is_the_same_in_every_process_and_another_with_another_seed(dataset):
    first, again, other = dataset(patch_size=8), dataset(patch_size=8), dataset(patch_size=8, seed=1)
    starts = [first[n]["start"].tolist() for n in range(1000, 1020)]

    assert starts == [again[n]["start"].tolist() for n in range(1000, 1020)]
    assert starts != [other[n]["start"].tolist() for n in range(1000, 1020)]
    assert {first.draw(n)[0] for n in range(20)} == {0, 1}


@pytest.mark.parametrize("source", ["codes", "latents"])
def test_normalised_training_latents_have_mean_0_and_deviation_1_per_channel_and_come_back(
    dataset, data, source
):
    statistics = measure_statistics(data, source, MODEL, CODES)
    plain, normalised = dataset(source), dataset(source, statistics=statistics)
    cells = torch.cat([normalised[n]["image"].flatten(1) for n in range(2)], dim=1).double()

    assert cells.mean(dim=1).abs().max() < 1e-5
    assert (cells.std(dim=1, correction=0) - 1).abs().max() < 1e-5
    torch.testing.assert_close(statistics.restore(normalised[1]["image"]), plain[1]["image"])


def test_a_channel_that_never_changes_is_only_shifted(data):
    constant = CODES.clone()
    constant[:, 2] = 4.0

    statistics = measure_statistics(data, "codes", MODEL, constant)
    assert (statistics.mean[2], statistics.std[2]) == (pytest.approx(4.0), 1.0)


def test_statistics_are_measured_once_and_then_read(data, tmp_path):
    path = tmp_path / "model_codes.json"
    measured = statistics_for(path, data, "codes", MODEL, CODES)
    assert not path.exists()
    measured.save(path)

    assert statistics_for(path, [], "codes", MODEL) == measured
    assert (measured.volumes, measured.cells) == (2, 7 * 6 * 5 + 5 * 9 * 8)


@pytest.mark.parametrize(("source", "model"), [("codes", OTHER_MODEL), ("latents", MODEL)])
def test_statistics_of_another_model_or_source_are_refused(data, tmp_path, source, model):
    path = tmp_path / "model_codes.json"
    measure_statistics(data, "codes", MODEL, CODES).save(path)

    with pytest.raises(StatisticsError, match="measured on codes of model aaaaaaaaaaaa.*--latent_statistics"):
        read_statistics(path, source, model)


@pytest.mark.parametrize(
    "damage", [{"std": [0.0] * 8}, {"mean": [1.0]}, {"mean": ["x"] * 8}, {"format_version": 2}]
)
def test_damaged_statistics_are_refused_by_name(data, tmp_path, damage):
    path = tmp_path / "model_codes.json"
    measure_statistics(data, "codes", MODEL, CODES).save(path)
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | damage), encoding="utf-8")

    with pytest.raises(StatisticsError, match="model_codes.json: is not a file of latent stat.*delete it"):
        read_statistics(path, "codes", MODEL)


def test_codes_of_another_model_are_not_measured(tmp_path):
    write_codes(tmp_path / "ct_codes.npz", model=OTHER_MODEL)

    with pytest.raises(LatentFileError, match="ct_codes.npz: encoded by another model"):
        measure_statistics([{"image": tmp_path / "ct_codes.npz"}], "codes", MODEL, CODES)


def test_files_without_latents_say_how_to_keep_them(tmp_path):
    write_codes(tmp_path / "ct_codes.npz", latents=False)
    data = [{"image": str(tmp_path / "ct_codes.npz")}]

    with pytest.raises(LatentFileError, match="ct_codes.npz: holds no latents.*--keep_latents true"):
        LatentDataset(data, tmp_path / "cache", "latents").prepare()
    with pytest.raises(LatentFileError, match="ct_codes.npz: holds no latents.*--keep_latents true"):
        measure_statistics(data, "latents", MODEL)


def test_a_file_that_is_encoded_anew_is_unpacked_anew(volumes, dataset):
    path = next(iter(volumes))
    dataset()[0]
    again = write_codes(Path(path), (7, 6, 5), seed=9)

    torch.testing.assert_close(dataset()[0]["image"], expected_latents(again, "codes"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"source": "pixels"}, "`source` must be one of codes, latents, indices, got 'pixels'"),
        ({"patch_size": 10}, r"`patch_size` must be made of positive multiples of 4, got \[10, 10, 10\]"),
        ({"patch_size": [24, 8, 8]}, r"smaller are .*p1.ct_codes.npz \[19, 35, 31\]: set a smaller one"),
    ],
)
def test_an_argument_that_breaks_its_rule_is_named(dataset, settings, message):
    with pytest.raises(LatentDataError, match=message):
        dataset(**settings)


@pytest.fixture
def scans(tmp_path):
    """A data set of NIfTI files whose codes lie beside it."""
    for name in NAMES:
        path = tmp_path / "scans" / name / "ct.nii.gz"
        path.parent.mkdir(parents=True)
        nib.save(nib.Nifti1Image(np.zeros((8, 8, 8), np.int16), np.eye(4)), path)
        write_codes(tmp_path / "codes" / name / "ct_codes.npz", (2, 2, 2))
    return tmp_path / "scans"


def patients(split):
    return {side: sorted(case["patient"] for case in cases) for side, cases in split.items()}


def test_patients_are_on_the_side_where_training_has_them(scans, tmp_path):
    expected = patients(split_cases(scans))

    assert patients(split_encoded(tmp_path / "codes", SETTINGS)) == expected
    assert patients(split_encoded(tmp_path / "codes", SETTINGS, scans)) == expected
    assert len(expected["validation"]) >= 1


def test_the_lists_of_a_datalist_are_repeated(scans, tmp_path):
    lists = {
        side: [{"image": f"{name}/ct.nii.gz"} for name in names]
        for side, names in {"training": NAMES[:3], "validation": NAMES[3:5]}.items()
    }
    (scans / "datalist.json").write_text(json.dumps(lists), encoding="utf-8")

    split = split_encoded(tmp_path / "codes", SETTINGS, scans / "datalist.json")
    assert patients(split) == {"training": NAMES[:3], "validation": NAMES[3:5]}


def test_folders_of_one_patient_are_on_one_side_whatever_they_are_called(tmp_path):
    """As a DICOM tree by date: the first folder is not the patient."""
    hashes = [patient_hash(f"MRN-{number}") for number in range(6)]
    for number, patient in enumerate(hashes * 2):
        write_codes(tmp_path / f"202401{number:02}" / "ct_codes.npz", (2, 2, 2), patient=patient)

    split = split_encoded(tmp_path, SETTINGS)
    assert {case["patient"] for side in split.values() for case in side} == set(hashes)
    assert {side: {case["patient"] for case in cases} for side, cases in split.items()} == {
        "validation": validation_patients(set(hashes)),
        "training": set(hashes) - validation_patients(set(hashes)),
    }
    assert all(len(cases) == 2 * len({case["patient"] for case in cases}) for cases in split.values())


def test_codes_of_one_patient_are_split_only_if_that_is_allowed(tmp_path, caplog):
    for name in ("a", "b"):
        write_codes(tmp_path / name / "ct_codes.npz", (2, 2, 2), patient=patient_hash("MRN-1"))

    with pytest.raises(SharedPatientsError, match="`allow_shared_patients` is false, but patient"):
        split_encoded(tmp_path, SETTINGS)
    assert len(split_encoded(tmp_path, SETTINGS, allow_shared_patients=True)["training"]) == 2
    assert "VALIDATION IS NOT INDEPENDENT" in caplog.text


def test_folders_called_after_the_patient_keep_the_side_of_their_name(scans, tmp_path):
    for name in NAMES:
        write_codes(tmp_path / "codes" / name / "ct_codes.npz", (2, 2, 2), patient=patient_hash(name))

    assert patients(split_encoded(tmp_path / "codes", SETTINGS)) == patients(split_cases(scans))


def test_a_data_set_that_was_not_encoded_is_refused_by_name(scans, tmp_path):
    write_codes(tmp_path / "others" / "q0" / "ct_codes.npz")

    with pytest.raises(LatentDataError, match="holds no codes of the training volumes of .*scans, such as"):
        split_encoded(tmp_path / "others", SETTINGS, scans)


def test_codes_of_another_window_are_refused(scans, tmp_path):
    with pytest.raises(DatasetError, match="encoded with other settings; decode it with --hu_max 1000.0"):
        split_encoded(tmp_path / "codes", {**SETTINGS, "hu_max": 2000.0})
