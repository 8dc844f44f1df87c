"""What clients choose stays data: in logs, tables, spreadsheets and counters; and what is secret is in none of them."""

from __future__ import annotations

import csv
import io
import json
import logging
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from rich.console import Console

from kong_plugins.adapters.ledger import EmbeddedValkey, connect_ledger
from kong_plugins.application.ports import Balance
from kong_plugins.cli.processes import free_port
from kong_plugins.cli.quota import table
from kong_plugins.collector.access import Tokens
from kong_plugins.collector.http_app import make_app
from kong_plugins.collector.http_server import HttpServer, bind
from kong_plugins.collector.intake import Intake
from kong_plugins.domain.holds import LineState
from kong_plugins.plugin_server.logs import _OneLine
from kong_plugins.reports.rows import as_text
from kong_plugins.token_quota.model_names import FORGET_S, INVENTED_MAX, TENANTS_MAX, ModelNames
from tests.bench.driver import start_instance

ROOT = Path(__file__).resolve().parents[2]
SECRET = "hunter2-of-the-ledger"


def test_a_tenant_invents_so_many_models_and_no_more() -> None:
    """One name too many is refused, for that tenant only; a name that an engine served is free for all."""
    names = ModelNames(["configured"])
    assert all(names.admit("mallory", f"m{number}", 0.0) for number in range(INVENTED_MAX))
    assert not names.admit("mallory", "one-more", 1.0)
    assert names.admit("mallory", "m0", 1.0)
    assert names.admit("mallory", "configured", 1.0)
    assert names.admit("eve", "one-more", 1.0)
    names.served("one-more")
    assert names.admit("mallory", "one-more", 1.0)
    assert names.admit("mallory", "tomorrow", FORGET_S + 1)


def test_a_served_name_makes_room_again() -> None:
    """A new model's name is no invention once an engine has generated under it."""
    names = ModelNames()
    assert all(names.admit("a", f"m{number}", 0.0) for number in range(INVENTED_MAX))
    names.served("m3")
    assert names.admit("a", "next", 1.0)
    assert not names.admit("a", "the one after", 1.0)


def test_tenants_that_are_remembered_are_bounded() -> None:
    """Tenants named by a header or address are a client's choice too."""
    names = ModelNames()
    for number in range(TENANTS_MAX + 50):
        names.admit(f"t{number}", "m", 0.0)
    assert len(names._invented) == TENANTS_MAX


@pytest.mark.parametrize("name", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", '=HYPERLINK("x")'])
def test_a_name_is_no_formula_in_a_spreadsheet(name: str) -> None:
    """What would be one has a quote in front; numbers and other names stay as they are."""
    out = io.StringIO()
    csv.writer(out).writerow([as_text(name)])
    (row,) = csv.reader(io.StringIO(out.getvalue()))
    assert row == [f"'{name}"]
    assert as_text(-5) == -5
    assert as_text("deepseek-r1") == "deepseek-r1"


def test_a_log_line_is_one_line_and_moves_no_cursor() -> None:
    """Line ends of every kind, escape sequences and NULs of a client's string are written out."""
    text = "model a\nb\rc\x1b[31md\x00e\x85f\u2028g\x9b31m"
    record = logging.LogRecord("x", logging.ERROR, "f", 1, "%s", (text,), None)
    line = _OneLine("[%(levelname)s] %(message)s").format(record)
    assert line.splitlines() == [line]
    assert all(char.isprintable() for char in line)
    assert "model a\\nb" in line


def test_a_tenants_name_is_no_markup_in_a_table() -> None:
    """Identity by header lets a client choose it."""
    state = LineState(key="daily|model=[red]x", limit=10, committed=0, held=0, reset_us=0, short=False)
    out = io.StringIO()
    Console(file=out, width=200).print(table([Balance("header:[link=http://x]a\x1b[2J", state, "rolling 60", "hard")]))
    assert "header:[link=http://x]a�[2J" in out.getvalue()
    assert "[red]x" in out.getvalue()


def test_a_crashed_plugin_server_tells_no_secret(tmp_path: Path) -> None:
    """With a row that knows the ledger's password, one that was refused, and metrics: none of its answers has it. Then
    aborted, with faulthandler on: neither its output nor a core file has that, or a tenant's key."""
    metrics_port = free_port()
    environment = {
        **os.environ,
        "TOKEN_QUOTA_LEDGER_URL": f"redis://:{SECRET}@127.0.0.1:1/0",
        "TOKEN_QUOTA_SPOOL_DIR": str(tmp_path / "spool"),
        "DECK_TENANT_A_KEY": SECRET,
        "TOKEN_QUOTA_METRICS_PORT": str(metrics_port),
        "PYTHONFAULTHANDLER": "1",
    }
    argv = [sys.executable, "-m", "kong_plugins.token_quota", "--kong-prefix", str(tmp_path), "--socket-name", "s.sock"]
    log = tmp_path / "log"
    with log.open("wb") as file:
        server = subprocess.Popen(argv, env=environment, cwd=tmp_path, stdout=file, stderr=file)
    try:
        path = tmp_path / "s.sock"
        deadline = time.monotonic() + 20
        while not _answers(path):
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.02)
        assert path.stat().st_mode & 0o077 == 0
        limits = Path(f"/proc/{server.pid}/limits").read_text()
        assert re.search(r"Max core file size +0 ", limits)
        start_instance(path, "token-quota", "{}")
        with pytest.raises(RuntimeError) as refused:
            start_instance(path, "token-quota", json.dumps({"ledger_url": f"redis://:{SECRET}@127.0.0.1:none/0"}))
        assert SECRET not in str(refused.value)
        with urllib.request.urlopen(f"http://127.0.0.1:{metrics_port}/metrics", timeout=20) as page:
            text = page.read().decode()
        assert 'ledger="redis://127.0.0.1:1/0"' in text
        assert SECRET not in text
        server.send_signal(signal.SIGABRT)
        assert server.wait(10) == -signal.SIGABRT
    finally:
        server.kill()
        server.wait()
    said = log.read_text()
    assert "Fatal Python error: Aborted" in said
    for file in tmp_path.rglob("*"):
        if file.is_file():
            assert SECRET.encode() not in file.read_bytes(), file
    assert resource.getrlimit(resource.RLIMIT_CORE)  # ours is as it was


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
        return True


def test_a_slow_client_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The collector closes a connection that never tells its request, and answers a body that never ends with a 408;
    without the token nothing of a body is read at all."""
    monkeypatch.setattr("kong_plugins.collector.http_protocol.HEAD_S", 0.2)
    monkeypatch.setattr("kong_plugins.collector.http_app.BODY_S", 0.2)
    with EmbeddedValkey(tmp_path / "ledger") as valkey:
        ledger = connect_ledger(valkey.url)
        tokens = Tokens((b"correct-horse-battery",))
        app = make_app(
            Intake(ledger),
            tokens,
            metrics=lambda: (b"", "text/plain"),
            not_ready=lambda: "",
            count=lambda _path, _counts: None,
        )
        listening = bind("127.0.0.1:0", tokens)
        server = HttpServer(app, listening)
        server.start()
        port = listening.getsockname()[1]
        try:
            head = b"POST /log HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n"
            assert _until_closed(port, b"") == b""
            assert _until_closed(port, head) == b""
            assert b" 401 " in _until_closed(port, head + b"Connection: close\r\n\r\n{")
            token = b"Authorization: Bearer correct-horse-battery\r\n"
            assert b" 408 " in _until_closed(port, head + token + b"\r\n{")
            with socket.create_connection(("127.0.0.1", port), timeout=15) as connection:
                connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
                came = b""
                while not came.endswith(b"ok\n"):
                    came += connection.recv(65536)
                connection.sendall(b"GET /heal")  # a second one that does not come
                assert connection.recv(65536) == b""
        finally:
            server.stop()
            ledger.close()


def _until_closed(port: int, data: bytes) -> bytes:
    """What comes until the server closes; a server that never does fails."""
    with socket.create_connection(("127.0.0.1", port), timeout=15) as connection:
        connection.sendall(data)
        came = b""
        while piece := connection.recv(65536):
            came += piece
        return came


@pytest.mark.parametrize("lock", sorted((ROOT / "requirements").glob("*.lock")), ids=lambda path: path.name)
def test_every_pinned_package_has_hashes(lock: Path) -> None:
    """One version exactly, and at least one SHA-256: what is installed is what was resolved."""
    entries = re.split(r"\n(?=\S)", lock.read_text().strip())
    entries = [entry for entry in entries if not entry.startswith("#")]
    assert entries
    for entry in entries:
        assert re.match(r"[A-Za-z0-9._-]+(\[[a-z,-]+\])?==[^\s;]+", entry), entry[:80]
        assert re.search(r"--hash=sha256:[0-9a-f]{64}", entry), entry[:80]


def test_the_bill_of_materials_is_the_lock(tmp_path: Path) -> None:
    """Each pinned package is a component with its version and hashes; the same lock gives the same file."""
    outs = [tmp_path / "a.json", tmp_path / "b.json"]
    for out in outs:
        subprocess.run(
            [sys.executable, ROOT / "scripts" / "sbom.py", "--out", out, "plugins.lock"], check=True, cwd=ROOT
        )
    assert outs[0].read_bytes() == outs[1].read_bytes()
    bill = json.loads(outs[0].read_text())
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
    lock = (ROOT / "requirements" / "plugins.lock").read_text()
    pinned = set(re.findall(r"^([A-Za-z0-9._-]+)==([^\s;]+)", lock, re.M))
    assert {(each["name"], each["version"]) for each in bill["components"]} == pinned
    assert all(each["purl"] == f"pkg:pypi/{each['name']}@{each['version']}" for each in bill["components"])
    assert all(each["hashes"] for each in bill["components"])


def test_an_audit_without_a_network_says_so(tmp_path: Path) -> None:
    """Neither "all is well" nor a stack trace: its own exit status and what to do."""
    environment = {
        **os.environ,
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(tmp_path),
        "HTTPS_PROXY": "http://127.0.0.1:1",
    }
    command = [sys.executable, ROOT / "scripts" / "audit.py", "--venv", tmp_path / "venv", "plugins.lock"]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "not audited" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_threat_model_names_tests_that_are_there() -> None:
    """A defence whose test is gone is a claim."""
    page = (ROOT / "docs" / "threat-model.md").read_text()
    named = re.findall(r"`((?:unit|e2e|integration|contract|wire|hostile)[a-z0-9_/.]*)`", page)
    assert len(named) > 30
    assert [name for name in named if not (ROOT / "tests" / name).exists()] == []


def test_nobody_listens_for_administrators_by_default() -> None:
    """kong.conf closes what Kong would open; an operator who needs it opens it knowingly."""
    lines = (ROOT / "kong" / "kong.conf").read_text().splitlines()
    for name in ("admin_listen", "status_listen"):
        assert [line for line in lines if line.startswith(f"{name} =")] == [f"{name} = off"]
