"""Enhanced CT: all slices in one file, positions and scaling in functional groups."""

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import RLELossless

from bundle.data.dicom.derived import SeriesWriter
from bundle.data.dicom.series import find_one_series, find_series
from bundle.data.volumes.formats import VolumeError
from bundle.data.volumes.reading import read_volume

ENHANCED_CT = "1.2.840.10008.5.1.4.1.1.2.1"
HU = np.random.default_rng(0).integers(-1024, 2000, (5, 32, 24)).astype(np.int16)  # Z, rows, columns
ORDER = (3, 0, 4, 2, 1)  # frames need not lie in order


def item(**elements):
    dataset = Dataset()
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    return [dataset]


@pytest.fixture
def enhanced(write_dicom, tmp_path):
    """Writes a series as one enhanced file beside its plain slices; gives both paths."""

    def write(compress=False, edit=lambda dataset: None):
        plain = write_dicom(tmp_path / "plain", HU, orientation=(0.8, 0.6, 0.0, -0.48, 0.64, 0.6))
        slices = [pydicom.dcmread(header.path) for header in find_one_series(plain).headers]
        slices = [slices[number] for number in ORDER]
        dataset = slices[0].copy()
        dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = ENHANCED_CT
        dataset.NumberOfFrames = len(slices)
        dataset.PixelData = b"".join(one.PixelData for one in slices)
        frames = []
        for one in slices:
            (frame,) = item(PlanePositionSequence=item(ImagePositionPatient=one.ImagePositionPatient))
            intercept = one.RescaleIntercept
            scaling = item(RescaleSlope="1", RescaleIntercept=intercept, RescaleType="HU")
            frame.PixelValueTransformationSequence = scaling
            frames.append(frame)
        (shared,) = item(
            PlaneOrientationSequence=item(ImageOrientationPatient=dataset.ImageOrientationPatient),
            PixelMeasuresSequence=item(PixelSpacing=dataset.PixelSpacing, SliceThickness="1.5"),
        )
        dataset.SharedFunctionalGroupsSequence, dataset.PerFrameFunctionalGroupsSequence = [shared], frames
        for keyword in (
            *("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"),
            *("RescaleSlope", "RescaleIntercept"),
        ):
            delattr(dataset, keyword)
        edit(dataset)
        if compress:
            for element in dataset.iterall():
                assert element
            dataset.compress(RLELossless)
        (tmp_path / "enhanced").mkdir()
        dataset.save_as(tmp_path / "enhanced" / "frames.dcm")
        return plain, tmp_path / "enhanced"

    return write


@pytest.mark.parametrize("compress", [False, True], ids=["raw", "runs"])
def test_a_file_of_frames_is_the_volume_of_its_slices(enhanced, compress):
    plain, frames = enhanced(compress)

    volume, expected = read_volume(frames), read_volume(plain)

    np.testing.assert_array_equal(volume.voxels, HU.transpose(2, 1, 0))
    np.testing.assert_array_equal(volume.affine, expected.affine)
    np.testing.assert_array_equal(read_volume(frames / "frames.dcm").voxels, volume.voxels)


def test_what_is_derived_from_frames_names_them_and_lies_in_their_place(enhanced, tmp_path):
    _, frames = enhanced()
    volume = read_volume(frames)
    writer = SeriesWriter("made by a test")
    writer.set_data_array(-volume.voxels[None])
    writer.set_metadata({"filename_or_obj": str(frames), "affine": volume.affine})

    writer.write(tmp_path / "recon")

    written = read_volume(tmp_path / "recon")
    np.testing.assert_array_equal(written.voxels, -volume.voxels)
    np.testing.assert_array_equal(written.affine, volume.affine)
    slices = [pydicom.dcmread(path) for path in sorted((tmp_path / "recon").iterdir())]
    numbers = [one.SourceImageSequence[0].ReferencedFrameNumber for one in slices]
    assert numbers == [ORDER.index(z) + 1 for z in range(5)]
    assert {one.SliceThickness for one in slices} == {1.5} and {one.PatientID for one in slices} == {
        "MRN-4711"
    }


def fewer_frames(dataset):
    dataset.NumberOfFrames = 3


def more_frames(dataset):
    dataset.NumberOfFrames = 6
    dataset.PixelData += bytes(2 * 32 * 24)


def without_positions(dataset):
    del dataset.PerFrameFunctionalGroupsSequence


def one_without_position(dataset):
    del dataset.PerFrameFunctionalGroupsSequence[2].PlanePositionSequence


@pytest.mark.parametrize(
    ("edit", "code"),
    [
        (fewer_frames, "damaged"),
        (more_frames, "damaged"),
        (without_positions, "multi_frame"),
        (one_without_position, "multi_frame"),
    ],
)
def test_frames_that_do_not_add_up_are_refused_in_one_line(enhanced, edit, code):
    _, frames = enhanced(edit=edit)

    (series,) = find_series(frames)

    assert series.reason is not None and series.reason.code == code and series.reason.message.count("\n") == 0
    with pytest.raises(VolumeError, match="frames.dcm"):
        read_volume(frames)
