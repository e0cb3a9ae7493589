import errno
import os
import signal

import pytest
import torch
from monai.bundle import ConfigParser
from torch.utils.data import DataLoader, Dataset

from bundle.run.command import UnknownOverrideError
from bundle.run.errors import own_message, short_message


def refuse(text: str) -> None:
    raise UnknownOverrideError(text)


def divide() -> float:
    return 1 / 0


class Broken(Dataset):
    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> torch.Tensor:
        raise UnknownOverrideError(f"scan_{index}.nii.gz: is truncated;\nget it again")


class Killed(Dataset):
    """Its readers meet the fate that the system has for those who take too much memory."""

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> torch.Tensor:
        os.kill(os.getpid(), signal.SIGKILL)
        return torch.zeros(1)


def test_a_killed_reader_is_told_with_what_to_do():
    with pytest.raises(RuntimeError) as caught:
        next(iter(DataLoader(Killed(), num_workers=1)))

    message = own_message(caught.value)
    assert message is not None
    assert message.startswith("`num_workers`: a process that reads patches was killed")
    assert "--num_workers" in message and "--resume_from_checkpoint auto" in message


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


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (MemoryError(), "out of memory; end other programs"),
        (
            MemoryError("Unable to allocate 5.86 GiB for an array"),
            "out of memory (Unable to allocate 5.86 GiB",
        ),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
            "out of memory",
        ),
        (OSError(errno.ENOSPC, "No space left on device", "/x/y"), "/x/y: cannot be written (No space left"),
    ],
)
def test_what_the_machine_lacks_is_one_line(error, told):
    wrapped = RuntimeError("applying transform <x>")
    wrapped.__cause__ = error

    message = own_message(wrapped)

    assert message is not None and message.startswith(told) and "\n" not in message


def test_an_error_that_nobody_expected_keeps_its_traceback():
    assert own_message(OSError(errno.EBADF, "Bad file descriptor")) is None
