"""Serves a fixed list of pages and files to browsers on this machine, and nothing else.

An address is looked up in a dictionary and never becomes a path. Requests that name another host are refused,
so that no other site can reach the server through a host name of its own.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple

from bundle.run.names import printable

logger = logging.getLogger(__name__)

LOOPBACK = "127.0.0.1"
TIMEOUT_S = 60


class Content(NamedTuple):
    """The content of an address: its type, and a function that makes it on request."""

    kind: str
    make: Callable[[], bytes]


class ViewerServer(ThreadingHTTPServer):
    """Answers on 127.0.0.1 until `shutdown`.

    Args:
        contents: by address, such as `/key/0/`; no other address is answered.
        port: 0 takes any free port.
    """

    daemon_threads = True

    def __init__(self, contents: Mapping[str, Content], port: int = 0) -> None:
        super().__init__((LOOPBACK, port), _Handler)
        self.contents = contents
        self.making = threading.Lock()  # a whole volume takes a GB while it is read: one at a time

    @property
    def hosts(self) -> tuple[str, ...]:
        """Returns what the header `Host` of a request may hold."""
        return tuple(f"{name}:{self.server_port}" for name in (LOOPBACK, "localhost"))

    @property
    def address(self) -> str:
        """Returns the address of this server, without a path."""
        return f"http://{self.hosts[0]}"


class _Handler(BaseHTTPRequestHandler):
    server: ViewerServer
    timeout = TIMEOUT_S
    server_version, sys_version = "viewer", ""

    def do_GET(self) -> None:  # noqa: N802
        if self.headers.get_all("Host", []) not in [[host] for host in self.server.hosts]:
            return self._answer(
                HTTPStatus.FORBIDDEN, "text/plain", b"this server answers its own machine only"
            )
        content = self.server.contents.get(self.path)
        if content is None:
            return self._answer(HTTPStatus.NOT_FOUND, "text/plain", b"there is nothing at this address")
        try:
            with self.server.making:
                made = content.make()
        except (OSError, ValueError, MemoryError) as error:
            told = printable(" ".join(str(error).split())) or type(error).__name__
            logger.warning("%s", told)
            return self._answer(HTTPStatus.INTERNAL_SERVER_ERROR, "text/plain", told.encode())
        self._answer(HTTPStatus.OK, content.kind, made)

    def _answer(self, status: HTTPStatus, kind: str, body: bytes) -> None:
        self.send_response(status)
        headers = {
            "Content-Type": f"{kind}; charset=utf-8" if kind.startswith("text/") else kind,
            "Content-Length": str(len(body)),
            "Cache-Control": "no-store",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
            "X-Frame-Options": "DENY",
        }
        for name, value in headers.items():
            self.send_header(name, value)
        try:
            self.end_headers()
            self.wfile.write(body)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True  # the browser has closed the connection

    def log_message(self, *_: object) -> None:
        """Logs nothing: requests may come from strangers and do not belong on the terminal."""
