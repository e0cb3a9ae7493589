"""Decides who may use the server: no page of another site, and no host name but the server's own.

MONAI Label answers every origin. So a page open in a browser on the server's machine could send requests to
127.0.0.1, and a page whose name was made to point there (DNS rebinding) could even read the answers. The
headers `Host` and `Origin` reveal both, and a page cannot forge them.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from bundle.run.names import shown

logger = logging.getLogger(__name__)

_HOST = re.compile(r"(?P<name>[a-z0-9._-]+|\[[0-9a-f:.]+\])(?::(?P<port>[0-9]{1,5}))?", re.IGNORECASE)
_ORIGIN = re.compile(rf"(?P<scheme>https?)://{_HOST.pattern}", re.IGNORECASE)
_PORTS = {"http": "80", "https": "443"}


class AccessError(ValueError):
    """A setting of the command line (`--conf`) that is invalid or would open too much."""


@dataclass(frozen=True)
class Access:
    """The hosts, origins and folders that the operator opened beyond the server's own machine.

    Attributes:
        hosts: names and addresses by which clients may call the server, without port, in small letters.
        origins: pages that may use it, such as `https://viewer.example:3000`, in small letters.
        folders: real paths of folders whose volumes a request may name by an absolute path.
    """

    hosts: frozenset[str] = frozenset()
    origins: frozenset[str] = frozenset()
    folders: tuple[str, ...] = ()

    @classmethod
    def from_conf(cls, conf: Mapping[str, str]) -> Access:
        """Reads `allow_hosts`, `allow_origins` and `allow_folders`, each a list separated by commas.

        Raises:
            AccessError: naming the first entry that cannot be used.
        """
        hosts, origins, folders = (
            [entry.strip() for entry in conf.get(key, "").split(",") if entry.strip()]
            for key in ("allow_hosts", "allow_origins", "allow_folders")
        )
        for host in hosts:
            if not (found := _HOST.fullmatch(host)) or found["port"]:
                raise AccessError(
                    f"`allow_hosts` must hold names or addresses without port, got {shown(host)}; "
                    "write each in full"
                )
        for origin in origins:
            if not _ORIGIN.fullmatch(origin):
                raise AccessError(
                    f"`allow_origins` must hold origins such as https://viewer.example:3000, got "
                    f"{shown(origin)}; write each in full"
                )
        for folder in folders:
            if not os.path.isabs(folder) or not os.path.isdir(folder):
                raise AccessError(
                    f"`allow_folders` must hold folders by their whole path, got {shown(folder)}; correct it"
                )
        return cls(
            frozenset(host.lower() for host in hosts),
            frozenset(origin.lower() for origin in origins),
            tuple(os.path.realpath(folder) for folder in folders),
        )

    def allows_path(self, path: Path) -> bool:
        """Tells whether a path, with all links resolved, is in a folder that the operator opened."""
        try:
            real = os.path.realpath(path)
        except ValueError:  # not a possible file name
            return False
        return any(real == folder or real.startswith(folder.rstrip("/") + "/") for folder in self.folders)

    def refusal(self, headers: Headers) -> str | None:
        """Says why a request with these headers is refused; None if it is allowed."""
        hosts = headers.getlist("host")
        host = _HOST.fullmatch(hosts[0]) if len(hosts) == 1 else None
        if host is None or not (_is_loopback(host["name"]) or host["name"].lower() in self.hosts):
            return (
                f"`Host` must be a name of this server's own machine, got {shown(', '.join(hosts))}; "
                "the operator opens another with --conf allow_hosts NAME"
            )
        origins = headers.getlist("origin")
        if origins:
            is_known = len(origins) == 1 and self._knows_origin(origins[0], host)
        else:
            # requests of a page without `Origin`: pictures, scripts and links
            is_known = headers.get("sec-fetch-site", "none").lower() in ("none", "same-origin")
        if not is_known:
            return (
                f"`Origin` must be this server itself, got {shown(', '.join(origins) or 'another site')}; "
                "the operator opens another with --conf allow_origins ORIGIN"
            )
        return None

    def _knows_origin(self, origin: str, host: re.Match[str]) -> bool:
        found = _ORIGIN.fullmatch(origin)
        if found is None:
            return False
        port = _PORTS[found["scheme"].lower()]
        own = (host["name"].lower(), host["port"] or port)
        return (found["name"].lower(), found["port"] or port) == own or origin.lower() in self.origins


class Guard:
    """ASGI application that passes on what `Access` allows, and answers 403 with the reason otherwise.

    Args:
        application: answers allowed requests.
        access: decides who may use the server.
    """

    def __init__(self, application: ASGIApp, access: Access) -> None:
        self.application = application
        self.access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Follows ASGI; anything but HTTP, such as a web socket, is closed."""
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        refusal = self.access.refusal(Headers(scope=scope))
        if refusal is None:
            await self.application(scope, receive, send)
            return
        logger.warning("refused: %s", refusal)
        await JSONResponse({"detail": refusal}, 403)(scope, receive, send)


def _is_loopback(name: str) -> bool:
    try:
        return ipaddress.ip_address(name.strip("[]")).is_loopback
    except ValueError:
        return name.lower() == "localhost"
