"""What a terminal shows: bars only where there is one, and log lines above them."""

import logging
import sys
from typing import Any, TextIO

from tqdm import tqdm

# ignite says so of every fresh run, and of every validation.
_MISLEADING = "Engine run resuming from iteration 0,"


def has_terminal() -> bool:
    """Whether a progress bar can be drawn; a file or a pipe would get a line for every step of it."""
    return sys.stderr is not None and sys.stderr.isatty()


def tidy_console() -> None:
    """Lets the console handlers of the root logger write above progress bars, without ignite's wrong line."""
    for handler in logging.getLogger().handlers:
        if not any(isinstance(known, _Filter) for known in handler.filters):
            handler.addFilter(_Filter())
        stream = getattr(handler, "stream", None)
        if isinstance(handler, logging.StreamHandler) and stream in (sys.stdout, sys.stderr):
            handler.setStream(_AboveBars(stream))


class _Filter(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return not str(record.msg).startswith(_MISLEADING)


class _AboveBars:
    """A stream of whole lines; bars are taken away for each and drawn again below it."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        tqdm.write(text, file=self._stream, end="")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
