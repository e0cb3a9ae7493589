"""Guards terminal, log and CSV: bars only on a terminal, and no control characters from files.

File names, headers and checkpoints can hold anything: escape sequences that rename a window, line breaks that
forge a line of the log, formulas that a spreadsheet runs.
"""

import argparse
import logging
import os
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path, PurePath
from typing import Any, NoReturn, TextIO

from tqdm import tqdm

from bundle.run.atomic import open_without_links
from bundle.run.names import printable

# Characters that begin a formula in a spreadsheet, the wide ones in an East Asian one.
FORMULA_SIGNS = tuple("=+-@\uff1d\uff0b\uff0d\uff20")
# Ignite logs this for every fresh run and for every validation.
_MISLEADING = "Engine run resuming from iteration 0,"


def has_terminal() -> bool:
    """Tells whether a progress bar can be drawn; a file or a pipe would get a line for every step of it."""
    return sys.stderr is not None and sys.stderr.isatty()


def tell(text: object, file: TextIO | None = None, flush: bool = False) -> None:
    """Prints text; all but its line breaks is printable.

    Args:
        text: of one or several lines; names in a table of several lines have to be `printable` before.
        file: standard output if None.
        flush: see `print`.
    """
    print("\n".join(map(printable, str(text).split("\n"))), file=file or sys.stdout, flush=flush)


def as_message(text: str) -> str:
    """Makes a message printable, and indents its later lines so that none looks like a new message."""
    first, *later = text.split("\n")
    indented = [line if not line or line[0] == " " else f"  {line}" for line in map(printable, later)]
    return "\n".join([printable(first), *indented])


class CommandParser(argparse.ArgumentParser):
    """Reads a command line; an error line repeats words of it as printable text.

    A program that was started by `python -m NAME` is called so in its help.
    """

    def __init__(self, **settings: Any) -> None:
        spec = getattr(sys.modules["__main__"], "__spec__", None)
        super().__init__(
            **({"prog": f"python -m {spec.name.removesuffix('.__main__')}"} if spec else {}) | settings
        )

    def error(self, message: str) -> NoReturn:
        """Ends the command; see `argparse.ArgumentParser`."""
        super().error(printable(message))


def csv_cells(row: Iterable[Any]) -> list[Any]:
    """Makes the cells of a row: text is printable and not a formula, numbers stay as they are."""
    return [_csv_text(str(cell)) if isinstance(cell, str | PurePath) else cell for cell in row]


def _csv_text(text: str) -> str:
    plain = printable(text)
    try:
        float(plain)
    except ValueError:
        is_formula = text.lstrip().startswith(FORMULA_SIGNS) or text.startswith(("\t", "\r"))
        return f"'{plain}" if is_formula else plain
    return plain


class MessageFormatter(logging.Formatter):
    """Formats as another formatter does, then makes the text a printable message.

    Args:
        inner: the other one; None = `logging`'s own.
    """

    def __init__(self, inner: logging.Formatter | None = None) -> None:
        super().__init__()
        self.inner = inner or logging.Formatter()

    def format(self, record: logging.LogRecord) -> str:
        """Returns the record as text."""
        return as_message(self.inner.format(record))


def tidy_console() -> None:
    """Lets the console handlers of the root logger write messages only, above progress bars.

    Ignite's wrong line about resuming is left out. Warnings of a script that sets up no log pass too.
    """
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(MessageFormatter())
    for handler in logging.getLogger().handlers:
        if not isinstance(handler.formatter, MessageFormatter):
            handler.setFormatter(MessageFormatter(handler.formatter))
        if not any(isinstance(known, _Filter) for known in handler.filters):
            handler.addFilter(_Filter())
        stream = getattr(handler, "stream", None)
        if isinstance(handler, logging.StreamHandler) and stream in (sys.stdout, sys.stderr):
            handler.setStream(_AboveBars(stream))


class _Filter(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return not str(record.msg).startswith(_MISLEADING)


class _AboveBars:
    """A stream of whole lines; for each of them, progress bars are removed and drawn again below it."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        tqdm.write(text, file=self._stream, end="")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class RunLog(logging.StreamHandler):
    """The log file of a run; if it cannot be written, one line says so and the run goes on."""

    def __init__(self, path: Path) -> None:
        file = open_without_links(path, os.O_WRONLY | os.O_APPEND)
        super().__init__(os.fdopen(file, "a", encoding="utf-8", errors="backslashreplace"))
        self.setFormatter(
            MessageFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        )
        self.path, self.is_failing = path, False

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """Names the file and the reason, once."""
        if not self.is_failing:
            self.is_failing = True
            tell(f"warning: {self.path}: cannot be written ({sys.exception()}); make room", file=sys.stderr)

    def close(self) -> None:
        """Closes the file."""
        with suppress(OSError):
            self.stream.close()
        super().close()


def open_log(path: Path) -> RunLog:
    """Opens the log file of a run; from now on it takes what the root logger passes on."""
    handler = RunLog(path)
    logging.getLogger().addHandler(handler)
    return handler
