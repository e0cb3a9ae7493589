"""The hashes by which patients are known where names must not travel."""

from pathlib import Path

import pytest

from bundle.data.cases.patients import patient_of_file
from bundle.run.names import patient_hash, patient_key


def test_a_hash_stays_as_it_is_so_that_a_patient_has_one_key_in_scans_stores_and_codes():
    key = patient_key("p1")

    assert key == patient_hash("p1") != "p1"
    assert patient_key(key) == key


@pytest.mark.parametrize("name", ["1234567890123456", "ABCDEF0123456789", "abcdef", "p" * 16])
def test_names_that_could_be_a_hospitals_numbers_are_hashed(name):
    assert patient_key(name) == patient_hash(name)


@pytest.mark.parametrize(
    ("name", "patient"),
    [
        *(("ct_7.nii.gz", "ct_7"), ("ct_7_0000.nii.gz", "ct_7"), ("sub-01_ses-2_ct.nii.gz", "sub-01")),
        *(("sub-01.nii", "sub-01"), ("sub-01-x_ct.nii", "sub-01-x_ct"), ("mysub-01_ct.nii", "mysub-01_ct")),
    ],
)
def test_the_subject_of_a_bids_name_is_the_patient_and_else_all_of_it(name, patient):
    assert patient_of_file(Path(name)) == patient
