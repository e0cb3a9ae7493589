"""Keeps foreign text from forging log lines or steering a terminal."""

from __future__ import annotations

import logging
import traceback

from bundle.run.names import printable


class PrintableLines(logging.Filter):
    """Turns each record into one line without control characters; lines of a traceback are indented.

    MONAI Label logs the content of requests and names of files.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Rewrites the record; never drops one."""
        try:
            record.msg, record.args = printable(record.getMessage()), None
            if record.exc_info and record.exc_info[1]:
                lines = "".join(traceback.format_exception(record.exc_info[1])).splitlines()
                record.exc_text = "\n".join(f"    {printable(line)}" for line in lines)
        except (TypeError, ValueError):  # the handler reports wrong arguments itself
            pass
        return True


def make_logs_printable() -> None:
    """Adds the filter to every existing handler."""
    loggers = [logging.root, *logging.root.manager.loggerDict.values()]
    for handler in {each for log in loggers if isinstance(log, logging.Logger) for each in log.handlers}:
        if not any(isinstance(each, PrintableLines) for each in handler.filters):
            handler.addFilter(PrintableLines())
