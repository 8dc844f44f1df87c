"""`token-quota spool`: what waits is shown, and posted by hand where no server is left to do it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from kong_plugins.adapters.ledger import EmbeddedValkey, connect_ledger
from kong_plugins.adapters.spool import DurableSpool, ledger_address
from kong_plugins.application.ports import Recording
from kong_plugins.cli.main import app
from kong_plugins.domain.partitions import partition_of


def spool(directory: Path, *args: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["spool", *args, "--dir", str(directory)])
    return result.exit_code, result.output


def test_shown_and_replayed_also_what_was_set_aside(tmp_path: Path) -> None:
    """With its reason; a second replay finds nothing, and a running server's file is left to it."""
    directory = tmp_path / "spool"
    directory.mkdir()
    assert spool(directory, "show") == (0, "nothing waits\n")
    with EmbeddedValkey(tmp_path / "valkey") as server:
        left = DurableSpool(directory, ledger_address(server.url))
        left.append(Recording("t", "bad", b'{"id":"bad"}'))
        left.append(Recording("t", "good", b'{"id":"good"}'))
        left.defer(left.oldest(1)[0], "an error of its own", None)
        code, text = spool(directory, "show")
        assert code == 0
        assert "1 waiting, 0 deferred, 1 set aside" in text
        assert "bad set aside after 1 times: an error of its own" in text
        assert "running server" in spool(directory, "replay", "--ledger", server.url)[1]
        left.close()
        assert json.loads(spool(directory, "show", "--json")[1])[0]["set_aside"] == 1
        assert spool(directory, "replay", "--ledger", server.url) == (0, "2 posted, 0 left\n")
        assert spool(directory, "replay", "--ledger", server.url) == (0, "0 posted, 0 left\n")
        ledger = connect_ledger(server.url, timeout_s=5)
        assert {entry.event_id for entry in ledger.outbox(partition_of("t"))} == {"bad", "good"}
        ledger.close()


def test_a_spool_that_is_not_there_is_no_empty_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Looked for in the wrong place, what waits must not pass for nothing; a running `up` is found by itself."""
    assert spool(tmp_path / "elsewhere", "show")[0] == 1
    for name in ("TOKEN_QUOTA_SPOOL_DIR", "TOKEN_QUOTA_LEDGER_URL", "KONG_PREFIX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    data = tmp_path / "token-quota"
    data.mkdir()
    with EmbeddedValkey(tmp_path / "valkey") as server:
        (data / "stack.json").write_text(json.dumps({"ledger_url": server.url}))
        left = DurableSpool(data / "spool", ledger_address(server.url))
        left.append(Recording("t", "e1", b"{}"))
        left.close()
        assert "1 waiting" in CliRunner().invoke(app, ["spool", "show"]).output
        assert CliRunner().invoke(app, ["spool", "replay"]).output == "1 posted, 0 left\n"


def test_a_ledger_that_moved_is_named_by_hand(tmp_path: Path) -> None:
    """What was meant for another address is posted only where the operator says so."""
    directory = tmp_path / "spool"
    left = DurableSpool(directory, "redis://old:6379/0")
    left.append(Recording("t", "e1", b"{}"))
    left.close()
    with EmbeddedValkey(tmp_path / "valkey") as server:
        assert spool(directory, "replay", "--ledger", server.url) == (0, "0 posted, 0 left\n")
        assert spool(directory, "replay", "--any-ledger", "--ledger", server.url) == (0, "1 posted, 0 left\n")


def test_without_a_ledger_it_says_so_and_keeps_everything(tmp_path: Path) -> None:
    """Exit 1, and the next replay finds it."""
    directory = tmp_path / "spool"
    url = f"unix://{tmp_path}/nobody.sock"
    left = DurableSpool(directory, ledger_address(url))
    left.append(Recording("t", "e1", b"{}"))
    left.close()
    assert spool(directory, "replay", "--seconds", "1", "--ledger", url) == (1, "0 posted, 1 left\n")
    assert "1 waiting" in spool(directory, "show")[1]
