"""The hashes by which patients are known where names must not travel."""

import pytest

from bundle.run.names import patient_hash, patient_key


def test_a_hash_stays_as_it_is_so_that_a_patient_has_one_key_in_scans_stores_and_codes():
    key = patient_key("p1")

    assert key == patient_hash("p1") != "p1"
    assert patient_key(key) == key


@pytest.mark.parametrize("name", ["1234567890123456", "ABCDEF0123456789", "abcdef", "p" * 16])
def test_names_that_could_be_a_hospitals_numbers_are_hashed(name):
    assert patient_key(name) == patient_hash(name)
