"""The command: says what it is, serves, reads its file again on SIGHUP, lets a stream end on SIGTERM."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

FILE = """
_format_version: "3.0"
services:
- name: engine
  url: http://engine.invalid:8000/v1
  routes: [{name: r, paths: ["%s"], response_buffering: false}]
  plugins: [{name: key-auth, config: {hide_credentials: true}}]
consumers: [{username: a, keyauth_credentials: [{key: '${{ env "DECK_KEY" }}'}]}]
"""


class Engine:
    """An upstream that sends a chunk, waits to be told, and sends the last one."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/v1"
        self.go_on = threading.Event()
        self.heads: list[bytes] = []
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.heads.append(connection.recv(65536))
            connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n")
            self.go_on.wait(10)
            connection.sendall(b"4\r\nlast\r\n0\r\n\r\n")
            connection.close()

    def close(self) -> None:
        self._listener.close()


@pytest.fixture
def engine() -> Iterator[Engine]:
    upstream = Engine()
    yield upstream
    upstream.go_on.set()
    upstream.close()


class Process:
    def __init__(self, config: Path, *arguments: str, **env: str) -> None:
        command = [
            sys.executable,
            "-m",
            "kong_plugins.local_gateway",
            "--config",
            str(config),
            "--port",
            "0",
            *arguments,
        ]
        self.process = subprocess.Popen(
            command, stderr=subprocess.PIPE, env={**os.environ, **env}, text=True, cwd=config.parent
        )
        self.lines: list[str] = []

    def wait_for(self, pattern: str) -> str:
        """The first line from here on that matches."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line)
            if re.search(pattern, line):
                return line
        raise AssertionError(f"no line like {pattern!r} in {''.join(self.lines)}")

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        assert self.process.stderr is not None
        self.process.stderr.close()


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "kong.yaml"
    path.write_text(FILE % "/chat")
    return path


def ask(port: int, path: str = "/chat") -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), timeout=10)
    connection.sendall(f"GET {path} HTTP/1.1\r\nHost: h\r\napikey: sk-1\r\nConnection: close\r\n\r\n".encode())
    return connection


def read_to(connection: socket.socket, end: bytes) -> bytes:
    data = b""
    while not data.endswith(end):
        piece = connection.recv(65536)
        assert piece, data
        data += piece
    return data


def test_it_says_that_it_is_not_kong_serves_reloads_and_drains(config: Path, engine: Engine) -> None:
    """One life: notice, a stream through the override with the key hidden, SIGHUP, SIGTERM with a stream under way."""
    gateway = Process(config, "--upstream-override", f"engine={engine.url}", DECK_KEY="sk-1")
    try:
        gateway.wait_for("It is not Kong")
        port = int(gateway.wait_for("listening on").rsplit(":", 1)[1])

        stream = ask(port)
        read_to(stream, b"first\r\n")
        assert engine.heads[0].startswith(b"GET /v1/chat HTTP/1.1\r\n") or engine.heads[0].startswith(b"GET /v1 ")
        assert b"sk-1" not in engine.heads[0]

        config.write_text(FILE % "/other")
        gateway.process.send_signal(signal.SIGHUP)
        gateway.wait_for("reloaded")
        assert b" 404 " in read_to(ask(port), b"}")
        config.write_text("services: 7")
        gateway.process.send_signal(signal.SIGHUP)
        gateway.wait_for("not reloaded, the old configuration stays: _format_version")

        gateway.process.send_signal(signal.SIGTERM)
        gateway.wait_for("stopping")
        engine.go_on.set()
        assert read_to(stream, b"0\r\n\r\n").endswith(b"last\r\n0\r\n\r\n")
        assert gateway.process.wait(10) == 0
    finally:
        gateway.stop()


def test_a_key_that_is_not_set_stops_it_with_the_variables_name(config: Path) -> None:
    env = {name: value for name, value in os.environ.items() if name != "DECK_KEY"}
    command = [sys.executable, "-m", "kong_plugins.local_gateway", "--config", str(config)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 1
    assert "environment variable DECK_KEY is not set: export DECK_KEY=…" in done.stderr


def test_a_plugin_server_that_is_not_there_is_named(config: Path, tmp_path: Path) -> None:
    """A plugin nobody runs stops the start, with the row it is in."""
    config.write_text(FILE % "/chat" + "plugins: [{name: token-quota}]\n")
    command = [
        sys.executable,
        "-m",
        "kong_plugins.local_gateway",
        "--config",
        str(config),
        "--plugins-dir",
        str(tmp_path),
    ]
    done = subprocess.run(
        command, env={**os.environ, "DECK_KEY": "k"}, capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 1
    assert "plugin token-quota (global): plugin 'token-quota' not enabled" in done.stderr
