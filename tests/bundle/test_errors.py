import pytest
import torch
from monai.bundle import ConfigParser
from torch.utils.data import DataLoader, Dataset

from bundle.command import UnknownOverrideError
from bundle.errors import own_message, short_message


def refuse(text: str) -> None:
    raise UnknownOverrideError(text)


def divide() -> float:
    return 1 / 0


class Broken(Dataset):
    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> torch.Tensor:
        raise UnknownOverrideError(f"scan_{index}.nii.gz: is truncated;\nget it again")


def monai_error(config: dict) -> BaseException:
    with pytest.raises(RuntimeError) as caught:
        ConfigParser(config).get_parsed_content("x")
    return caught.value


def test_own_message_is_found_below_monai_wrappers():
    error = monai_error({"x": {"_target_": "$@f", "text": "scan.nii: is 2D"}, "f": "$@g.refuse", "g": Holder})

    assert own_message(error) == "scan.nii: is 2D"


def test_other_errors_are_told_without_monai_wrappers():
    error = monai_error({"x": {"_target_": "$@g.divide"}, "g": Holder})

    assert own_message(error) is None
    assert short_message(error) == "ZeroDivisionError: division by zero"


def test_own_message_is_found_in_what_a_loading_process_passes_on():
    with pytest.raises(UnknownOverrideError) as caught:
        next(iter(DataLoader(Broken(), num_workers=1)))

    assert own_message(caught.value) == "scan_0.nii.gz: is truncated;\nget it again"


class Holder:
    refuse = staticmethod(refuse)
    divide = staticmethod(divide)
