"""Keeps foreign text from forging log lines or steering a terminal."""

from __future__ import annotations

import logging
import traceback

from bundle.run.names import printable


class PrintableLines(logging.Filter):
    """Makes each record one line without control characters; lines of a traceback are set in.

    MONAI Label logs whatever comes with a request, and names of files.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Rewrites the record; never drops one."""
        try:
            record.msg, record.args = printable(record.getMessage()), None
            if record.exc_info and record.exc_info[1]:
                lines = "".join(traceback.format_exception(record.exc_info[1])).splitlines()
                record.exc_text = "\n".join(f"    {printable(line)}" for line in lines)
        except (TypeError, ValueError):  # the handler reports a message that does not fit its arguments
            pass
        return True


def make_logs_printable() -> None:
    """Puts the filter on every handler that there is."""
    loggers = [logging.root, *logging.root.manager.loggerDict.values()]
    for handler in {each for log in loggers if isinstance(log, logging.Logger) for each in log.handlers}:
        if not any(isinstance(each, PrintableLines) for each in handler.filters):
            handler.addFilter(PrintableLines())
