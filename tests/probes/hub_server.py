"""A server on loopback that answers as the Hub does when things go wrong."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from collections.abc import Iterator

CONFIG = b'{"model_type": "bert", "architectures": ["BertModel"]}'
BODIES = {
    "torn": CONFIG[: len(CONFIG) // 2],
    "newer-model": b'{"model_type": "of_next_year"}',
}


class Handler(BaseHTTPRequestHandler):
    """The first part of a repository's name says what comes of asking for it."""

    protocol_version = "HTTP/1.1"
    stop: ClassVar[threading.Event]
    asked: ClassVar[list[str]]

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        self.asked.append(self.path)
        parts = self.path.strip("/").split("/")
        mode = next((p for p in parts if p in MODES), "404-none")
        if mode == "silence":
            self.stop.wait()
            self.close_connection = True
            return
        if mode == "cut":
            self.close_connection = True
            return
        status, headers = MODES[mode]
        body = BODIES.get(mode, CONFIG)
        if status != 200:
            body = b'{"error": "told you"}'
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if status == 200:
            self.send_header("ETag", '"0123456789"')
            self.send_header("X-Repo-Commit", "0" * 40)
        length = len(body) * (2 if mode == "half" else 1)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
        if mode == "half":
            self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


MODES: dict[str, tuple[int, dict[str, str]]] = {
    "ok": (200, {}),
    "half": (200, {}),
    "torn": (200, {}),
    "newer-model": (200, {}),
    "401": (401, {}),
    "401-repo": (401, {"X-Error-Code": "RepoNotFound"}),
    "403": (403, {}),
    "gated": (403, {"X-Error-Code": "GatedRepo"}),
    "404-repo": (404, {"X-Error-Code": "RepoNotFound"}),
    "404-entry": (404, {"X-Error-Code": "EntryNotFound"}),
    "404-revision": (404, {"X-Error-Code": "RevisionNotFound"}),
    "404-none": (404, {}),
    "400": (400, {}),
    "429": (429, {"Retry-After": "7"}),
    "500": (500, {}),
    "503": (503, {"Retry-After": "3"}),
    "silence": (0, {}),
    "cut": (0, {}),
}


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """A client that hung up is no news."""


@contextmanager
def serving() -> Iterator[tuple[str, list[str]]]:
    """Its address and the paths that were asked for."""
    handler = type("Bound", (Handler,), {"stop": threading.Event(), "asked": []})
    server = Server(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", handler.asked
    finally:
        handler.stop.set()
        server.shutdown()
        thread.join()
        server.server_close()


if __name__ == "__main__":
    with serving() as (address, _):
        print(address, flush=True)
        time.sleep(600)
