"""kong/docker: the scripts of the image, run where they can be without it."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from kong_plugins.cli.processes import Processes, unix_socket_answers, wait_until

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "kong" / "docker"
DOCKERFILE = (ROOT / "kong" / "Dockerfile").read_text()


def source(script: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run ``script`` after environment.sh, with nothing else in the environment."""
    home = str(Path(sys.executable).parent.parent)
    return subprocess.run(
        ["sh", "-euc", f'home={home}; . "{SCRIPTS}/environment.sh"; {script}'],
        env={"PATH": os.environ["PATH"], **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_ledgers_password_comes_from_a_file_into_the_url(tmp_path: Path) -> None:
    secret = tmp_path / "password"
    secret.write_text("s3cret\n")
    environment = {"TOKEN_QUOTA_LEDGER_PASSWORD_FILE": str(secret)}
    done = source("echo $TOKEN_QUOTA_LEDGER_URL", TOKEN_QUOTA_LEDGER_URL="redis://ledger:6379/0", **environment)
    assert done.stdout == "redis://:s3cret@ledger:6379/0\n"
    sentinels = "redis+sentinel://one:26379,two:26379/ledger/0"
    done = source("echo $TOKEN_QUOTA_LEDGER_URL", TOKEN_QUOTA_LEDGER_URL=sentinels, **environment)
    assert done.stdout == "redis+sentinel://:s3cret@one:26379,two:26379/ledger/0\n"


@pytest.mark.parametrize(
    ("password", "url", "complaint"),
    [
        ("a/b", "redis://ledger:6379/0", "letters, digits"),
        ("", "redis://ledger:6379/0", "letters, digits"),
        ("s3cret", "redis://:other@ledger:6379/0", "already"),
    ],
)
def test_a_password_that_would_make_another_url_is_refused(
    tmp_path: Path, password: str, url: str, complaint: str
) -> None:
    """And it is not in the message."""
    secret = tmp_path / "password"
    secret.write_text(password)
    done = source("true", TOKEN_QUOTA_LEDGER_URL=url, TOKEN_QUOTA_LEDGER_PASSWORD_FILE=str(secret))
    assert done.returncode == 1
    assert complaint in done.stderr
    assert not password or password not in done.stderr


def test_keys_are_filled_in_and_stay_out_of_kongs_environment(tmp_path: Path) -> None:
    """The rendered file is for its owner alone; a key may hold what a shell would read otherwise."""
    keys = tmp_path / "keys"
    keys.write_text("# made by hand\nDECK_TENANT_A_KEY=sk-$(id)=`x`\nDECK_TENANT_B_KEY=sk-b\n")
    environment = {
        "KONG_PREFIX": str(tmp_path),
        "TOKEN_QUOTA_CONFIG": str(ROOT / "kong" / "kong.yaml"),
        "TOKEN_QUOTA_KEYS_FILE": str(keys),
    }
    done = source("kong_environment $$; render; env", **environment)
    assert done.returncode == 0, done.stderr
    rendered = tmp_path / "token-quota.yaml"
    assert f"KONG_DECLARATIVE_CONFIG={rendered}" in done.stdout
    assert "sk-" not in done.stdout
    assert "sk-$(id)=`x`" in rendered.read_text()
    assert rendered.stat().st_mode & 0o777 == 0o600


def test_a_missing_key_leaves_the_rendered_file_as_it_was(tmp_path: Path) -> None:
    """A reload that cannot read its keys changes nothing."""
    keys = tmp_path / "keys"
    keys.write_text("DECK_TENANT_A_KEY=sk-a\n")
    (tmp_path / "token-quota.yaml").write_text("what runs")
    environment = {"KONG_PREFIX": str(tmp_path), "TOKEN_QUOTA_CONFIG": str(ROOT / "kong" / "kong.yaml")}
    done = source("kong_environment $$; render", TOKEN_QUOTA_KEYS_FILE=str(keys), **environment)
    assert done.returncode == 1
    assert "DECK_TENANT_B_KEY" in done.stderr
    assert (tmp_path / "token-quota.yaml").read_text() == "what runs"


def test_without_a_deck_file_nothing_is_rendered(tmp_path: Path) -> None:
    """Kong Ingress Controller, or a database, brings the configuration."""
    environment = {"KONG_PREFIX": f"{tmp_path}/", "TOKEN_QUOTA_CONFIG": str(tmp_path / "none.yaml")}
    done = source("kong_environment $$; render; env", **environment)
    assert done.returncode == 0
    assert "KONG_DECLARATIVE_CONFIG" not in done.stdout
    assert f"KONG_PLUGINSERVER_TOKEN_QUOTA_SOCKET={tmp_path}/token-quota.sock" in done.stdout


def test_plugin_servers_write_to_the_containers_log(tmp_path: Path) -> None:
    """Kong keeps what they say to itself: nobody would see that an event was lost. Started as Kong starts them."""
    log = tmp_path / "stderr of Kong"
    with log.open("w") as stderr, Processes(tmp_path / "logs") as processes:
        kong = subprocess.Popen(["sleep", "60"], stderr=stderr)
        try:
            done = source(f"kong_environment {kong.pid}; env", KONG_PREFIX=str(tmp_path))
            settings = dict(line.split("=", 1) for line in done.stdout.splitlines())
            command = settings["KONG_PLUGINSERVER_TOKEN_QUOTA_START_CMD"]
            answers = unix_socket_answers(Path(settings["KONG_PLUGINSERVER_TOKEN_QUOTA_SOCKET"]))
            processes.start("token-quota", ["sh", "-c", f"exec {command}"], {}, answers)
            wait_until(lambda: "serving token-quota at" in log.read_text(), "what it says", log)
        finally:
            kong.kill()
            kong.wait()


def test_a_log_that_cannot_be_opened_keeps_no_plugin_server_from_its_work(tmp_path: Path) -> None:
    """A supervisor may give Kong a socket."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        kong = subprocess.Popen(["sleep", "60"], stderr=theirs)
        try:
            done = source(f"kong_environment {kong.pid}; env", KONG_PREFIX=str(tmp_path))
        finally:
            kong.kill()
            kong.wait()
    assert (done.returncode, done.stderr) == (0, "")
    assert "--log-file /dev/null\n" in done.stdout


def healthy(prefix: Path, port: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-I", str(SCRIPTS / "healthy.py")],
        env={"KONG_PREFIX": str(prefix), "KONG_PROXY_LISTEN": f"127.0.0.1:{port} reuseport, 0.0.0.0:1 ssl"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_healthy_is_red_until_the_port_and_both_plugin_servers_answer(tmp_path: Path) -> None:
    """A server that is stopped still has its socket, and the kernel takes connections for it: it has to answer."""
    with socket.create_server(("127.0.0.1", 0)) as proxy, Processes(tmp_path / "logs") as processes:
        port = proxy.getsockname()[1]
        assert healthy(tmp_path, port).stdout.startswith("token-quota: ")
        for name, module in (
            ("token-quota", "kong_plugins.token_quota"),
            ("billing-events", "kong_plugins.billing_events"),
        ):
            path = tmp_path / f"{name}.sock"
            command = [sys.executable, "-m", module, "--kong-prefix", str(tmp_path), "--socket-name", path.name]
            before = healthy(tmp_path, port)
            assert before.returncode == 1
            assert before.stdout.startswith(f"{name}: ")
            processes.start(
                name, command, {"TOKEN_QUOTA_LEDGER_URL": "redis://127.0.0.1:1/0"}, unix_socket_answers(path)
            )
        assert healthy(tmp_path, port).returncode == 0
        server = processes.children[-1].process
        server.send_signal(signal.SIGSTOP)
        stopped = healthy(tmp_path, port)
        server.send_signal(signal.SIGCONT)
        assert stopped.returncode == 1
        assert stopped.stdout.startswith("billing-events: ")
    assert healthy(tmp_path, port).stdout.startswith("Kong's proxy: ")


def test_final_stages_run_as_nobody_special_and_have_no_compiler() -> None:
    """Tags are versions, everything is installed by hash and as wheels, and nothing that builds is in what runs."""
    stages = re.split(r"^FROM ", DOCKERFILE, flags=re.MULTILINE)[1:]
    images = {stage.split()[0] for stage in stages} - {stage.split()[2] for stage in stages}
    assert images == {"kong:3.9.1", "python:3.12.11-slim-bookworm", "python:3.11.13-slim-bookworm"}
    final = {stage.split()[2]: stage for stage in stages if stage.split()[2] in {"kong", "collector", "cpu-engine"}}
    assert len(final) == 3
    for stage in final.values():
        assert re.findall(r"^USER (\S+)$", stage, flags=re.MULTILINE)[-1] != "root"
        assert "pip" not in stage.replace("PIP_", "")
    assert not re.search(r"\b(gcc|g\+\+|build-essential|python3-dev)\b", DOCKERFILE)
    for installing in re.findall(r"pip install .*?(?=&&|\n[A-Z])", DOCKERFILE, flags=re.DOTALL):
        assert "--require-hashes" in installing or "--no-index" in installing
    for copied in re.findall(r"^COPY (?!--from)(.*)$", DOCKERFILE, flags=re.MULTILINE):
        for path in copied.split()[:-1]:
            assert (ROOT / path).exists(), path
