"""Puts handlers that other parts of a config refer to into lists."""

from typing import Any


def named_handler(handler: Any) -> Any:
    """Puts a handler that has an id of its own into a list of handlers.

    MONAI reads every item of such a list as a component; a reference by place instead would point to another
    one where a program (MONAI Label) puts a handler of its own first.
    """
    return handler
