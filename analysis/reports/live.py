"""`python -m specbench.analysis RUNS --serve`: a local page over run folders while something writes them.

Reads alone, answers GET and HEAD of one address, holds no session and runs no script. On a loopback address only requests that
name it are answered, so that no page of the web can read it through the reader's browser.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import threading
import time
from collections.abc import Sequence
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from specbench.analysis.read.following import Follower
from specbench.analysis.show.live import page

HOST, PORT, RELOAD_SECONDS = "127.0.0.1", 8765, 5
_FRESH_SECONDS = 1.0  # several readers are one look
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


class Server(ThreadingHTTPServer):
    """Listens when made; `serve_forever` answers. port: 0 for any that is free."""

    daemon_threads = True

    def __init__(self, roots: Sequence[str | Path], host: str = HOST, port: int = PORT):
        for root in roots:
            if not Path(root).is_dir():
                raise ValueError(f"{root}: no such folder; give one that holds run folders, or will")
        self._follower, self._lock, self._made = Follower(roots), threading.Lock(), (-_FRESH_SECONDS, b"")
        try:
            super().__init__((host, port), _Handler)
        except (OSError, OverflowError) as error:
            why = getattr(error, "strerror", None) or error
            raise ValueError(f"--host={host} --port={port}: {why}; --port 0 takes a free one") from error

    @property
    def address(self) -> str:
        host, port = self.server_address[:2]
        return f"http://{host!s}:{port}/"

    def page(self) -> bytes:
        with self._lock:
            made_at, text = self._made
            if time.monotonic() - made_at >= _FRESH_SECONDS:
                text = page(self._follower.look(), RELOAD_SECONDS).encode("utf-8", "backslashreplace")
                self._made = (time.monotonic(), text)
            return text

    def is_meant(self, host: str) -> bool:
        """Whether a request's Host is this server's: a name that somebody points at a loopback address is not."""
        try:
            if not ipaddress.ip_address(str(self.server_address[0])).is_loopback:
                return True
        except ValueError:
            return True
        name = urlsplit(f"//{host}").hostname or ""
        return name in ("localhost", str(self.server_address[0]))

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A reader that went away is no matter; nothing is printed over the terminal of who watches."""


class _Handler(BaseHTTPRequestHandler):
    server: Server
    server_version, sys_version, timeout = "specbench", "", 30

    def do_GET(self) -> None:
        try:
            is_here = urlsplit(self.path).path == "/" and self.server.is_meant(self.headers.get("Host", ""))
        except ValueError:  # no address at all
            is_here = False
        if is_here:
            self._answer(200, "text/html; charset=utf-8", self.server.page())
        else:
            self._answer(404, "text/plain; charset=utf-8", b"nothing here\n")

    do_HEAD = do_GET

    def _answer(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **_HEADERS}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """The terminal is for the address alone."""


def serve(roots: Sequence[str | Path], host: str = HOST, port: int = PORT) -> None:
    """Answer until Ctrl-C. Raises ValueError for a folder that is not there and an address that cannot be had."""
    with Server(roots, host, port) as server:
        say = partial(print, flush=True)
        with contextlib.suppress(OSError):
            os.nice(10)  # what is measured on this machine comes first
        say(f"{server.address} follows {', '.join(map(str, roots))}; Ctrl-C ends it")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            say("ended")
