"""A receiver of CloudEvents over HTTP that counts each source and id once and forgets nothing: `PORT FILE`."""

from __future__ import annotations

import json
import os
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock


def read_received(path: Path) -> list[dict[str, object]]:
    """Every event in the order it came; what a kill cut off was never confirmed."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]


class Receiver(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, port: int, path: Path) -> None:
        self.known = {(event["source"], event["id"]) for event in read_received(path)}
        self.file = path.open("ab")
        self.file.truncate(path.read_bytes().rfind(b"\n") + 1)
        self.lock = Lock()
        super().__init__(("127.0.0.1", port), Handler)

    def handle_error(self, *_: object) -> None:
        """Who asked was killed."""

    def take(self, events: list[dict[str, object]]) -> None:
        """On disk before it returns."""
        with self.lock:
            new = {(event["source"], event["id"]): event for event in events}
            self.keep([event for key, event in new.items() if key not in self.known])
            self.known |= new.keys()

    def keep(self, events: list[dict[str, object]]) -> None:
        self.file.write(b"".join(json.dumps(event).encode() + b"\n" for event in events))
        self.file.flush()
        os.fsync(self.file.fileno())


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Receiver

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.take(body if isinstance(body, list) else [body])
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


if __name__ == "__main__":
    Receiver(int(sys.argv[1]), Path(sys.argv[2])).serve_forever()
