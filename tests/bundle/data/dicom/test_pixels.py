"""HU are stored values x slope + intercept: nothing that a header says of display changes them."""

import struct

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import RLELossless

from bundle.data.dicom.pixels import _find_frames
from bundle.data.dicom.series import find_one_series
from bundle.data.volumes.formats import VolumeError
from bundle.data.volumes.reading import read_volume

HU = np.random.default_rng(0).integers(-1024, 2000, (3, 32, 24)).astype(np.int16)  # Z, rows, columns
VOXELS = HU.transpose(2, 1, 0)


def change(folder, edit):
    """Writes the files of a folder again as `edit(dataset)` leaves them."""
    for path in folder.iterdir():
        dataset = pydicom.dcmread(path)
        edit(dataset)
        dataset.save_as(path)


def as_runs(dataset):
    for element in dataset:  # taken apart, so that it can be written explicitly
        assert element
    dataset.compress(RLELossless)


def stored_signed(dataset):
    stored = np.frombuffer(dataset.PixelData, "<u2").astype(np.int32) - 1024
    dataset.PixelData, dataset.PixelRepresentation = stored.astype("<i2").tobytes(), 1
    dataset.BitsStored, dataset.HighBit, dataset.RescaleIntercept = 16, 15, "0"


def monochrome_1(dataset):
    dataset.PhotometricInterpretation = "MONOCHROME1"


def window(dataset):
    dataset.WindowCenter, dataset.WindowWidth, dataset.VOILUTFunction = "40", "400", "SIGMOID"


def window_table(dataset):
    item = Dataset()
    item.add_new(0x00283002, "US", [4096, 0, 16])
    item.add_new(0x00283006, "US", list(range(4096, 0, -1)))
    dataset.VOILUTSequence = [item]


def inverse(dataset):
    dataset.PresentationLUTShape = "INVERSE"


@pytest.mark.parametrize("packed", ["raw", "signed", "runs", "JPEG", "JPEG2000"])
@pytest.mark.parametrize(
    "display", [monochrome_1, window, window_table, inverse], ids=lambda edit: edit.__name__
)
def test_display_leaves_values_alone(write_dicom, tmp_path, display, packed):
    folder = write_dicom(tmp_path / "ct", HU, compressor=packed if packed.startswith("JPEG") else None)
    edits = {"signed": stored_signed, "runs": as_runs}
    change(folder, display)
    if packed in edits:
        change(folder, edits[packed])

    volume = read_volume(folder)

    assert volume.voxels.dtype == np.int16
    np.testing.assert_array_equal(volume.voxels, VOXELS)


def modality_table(dataset):
    window_table(dataset)
    dataset.ModalityLUTSequence = dataset.VOILUTSequence


def palette(dataset):
    dataset.PhotometricInterpretation = "PALETTE COLOR"


def high_bit(dataset):
    dataset.BitsStored, dataset.HighBit = 12, 15


def without_sign(dataset):
    del dataset.PixelRepresentation


def other_unit(dataset):
    dataset.RescaleType = "Z_EFF"


REFUSED = {
    "non_hu": (modality_table, r"by a table \(Modality LUT Sequence\)"),
    "non_hu ": (other_unit, "is not in HU"),
    "colour": (palette, "no colours"),
    "lying_header": (high_bit, r"12 bits elsewhere than in the lowest ones \(its HighBit is 15\)"),
    "lying_header ": (without_sign, "does not say how many bits"),
}


@pytest.mark.parametrize("code", REFUSED)
def test_values_that_are_not_what_they_seem_are_refused(write_dicom, tmp_path, code):
    edit, message = REFUSED[code]
    folder = write_dicom(tmp_path / "ct", HU)
    change(folder, edit)

    with pytest.raises(VolumeError, match=message) as refused:
        read_volume(folder)

    assert refused.value.code == code.strip()


def test_bits_above_those_of_the_value_are_ignored(write_dicom, tmp_path):
    def overlaid(dataset):
        stored = np.frombuffer(dataset.PixelData, "<u2")
        dataset.PixelData = (stored | np.uint16(0x9000)).tobytes()
        dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 12, 11, 0

    folder = write_dicom(tmp_path / "ct", HU)
    change(folder, overlaid)

    np.testing.assert_array_equal(read_volume(folder).voxels, VOXELS)


def padded(values, declared, bits_stored=16):
    """Fills the slices' first three columns with stored values, and says so."""

    def edit(dataset):
        stored = np.frombuffer(dataset.PixelData, "<u2").reshape(32, 24).copy()
        stored[:, :3] = values
        dataset.PixelData = stored.tobytes()
        dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = bits_stored, bits_stored - 1, 0
        for tag, value in zip((0x00280120, 0x00280121), declared, strict=False):
            dataset.add_new(tag, "US", value)

    return edit


@pytest.mark.parametrize(
    ("values", "declared", "bits_stored"),
    [
        (65535, [65535], 16),
        (65535, [65535], 12),  # above the bits of a value
        ([65000, 65100, 65535], [65535, 65000], 16),
        ([65000, 65100, 65535], [65000, 65535], 16),
    ],
)
def test_padding_becomes_air_and_is_told(write_dicom, tmp_path, caplog, values, declared, bits_stored):
    folder = write_dicom(tmp_path / "ct", HU)
    change(folder, padded(values, declared, bits_stored))

    volume = read_volume(folder)

    expected = VOXELS.copy()
    expected[:3] = -1024
    np.testing.assert_array_equal(volume.voxels, expected)
    assert volume.voxels.dtype == np.int16
    assert "its padding (stored value 65" in caplog.text and "is read as -1024 HU, air" in caplog.text


def test_padding_below_air_stays_what_it_is_without_a_word(write_dicom, tmp_path, caplog):
    def signed(dataset):
        stored_signed(dataset)
        padded(np.uint16(63536), [63536])(
            dataset
        )  # -2000, in the form of an unsigned number as some write it
        dataset.RescaleIntercept, dataset.PixelRepresentation = "-1024", 1

    folder = write_dicom(tmp_path / "ct", HU)
    change(folder, signed)

    assert (read_volume(folder).voxels[:3] == -3024).all() and not caplog.text


def test_a_value_that_is_declared_padding_and_lies_only_inside_was_measured(write_dicom, tmp_path):
    slices = HU.copy()
    slices[:, 10, 10] = 0
    slices[:, [0, 0, -1, -1], [0, -1, 0, -1]] = -1000
    folder = write_dicom(tmp_path / "ct", slices)
    change(folder, lambda dataset: dataset.add_new(0x00280120, "US", 1024))

    np.testing.assert_array_equal(read_volume(folder).voxels, slices.transpose(2, 1, 0))


@pytest.mark.parametrize(
    ("offsets", "frames"),
    [
        ((0, 20), [[0, 1], [2]]),
        ((0, 10), [[0], [1, 2]]),
        ((0, 21), None),  # inside of a fragment: its frame would lose its beginning
        ((10, 20), None),
        ((20, 0), None),
        ((0, 0), None),
    ],
)
def test_frames_begin_with_fragments_in_order_or_are_refused(tmp_path, offsets, frames):
    fragments = b"".join(struct.pack("<HHI", 0xFFFE, 0xE000, 2) + b"ab" for _ in range(3))
    table = struct.pack("<HHI2I", 0xFFFE, 0xE000, 8, *offsets)
    path = tmp_path / "pixels"
    path.write_bytes(table + fragments + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0))

    with path.open("rb") as file:
        if frames is None:
            with pytest.raises(ValueError, match="frames that do not begin with a fragment"):
                _find_frames(file, 2)
        else:
            starts = [len(table) + 10 * number + 8 for number in range(3)]
            assert _find_frames(file, 2) == [[(starts[n], 2) for n in frame] for frame in frames]


def test_a_decoder_that_dies_names_the_file_and_ends_alone(write_dicom, tmp_path, monkeypatch):
    folder = write_dicom(tmp_path / "ct", HU, compressor="JPEG")
    first = find_one_series(folder).files[0]
    monkeypatch.setattr("bundle.data.dicom.pixels.SLICE_SECONDS", 0.0)

    with pytest.raises(VolumeError, match=f"{first}: its pixels .*the decoder did not survive it"):
        read_volume(folder)
