"""`token-quota engine-check`: each missing flag of an engine is told with its fix, and stops `up` if need be."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from typer.testing import CliRunner

from kong_plugins.adapters.engine_probe import Probe
from kong_plugins.application.engine_check import Grade, verdicts
from kong_plugins.cli.main import app
from kong_plugins.cli.processes import StackError, free_port
from kong_plugins.cli.stack import Gateway, StackOptions, default_config, start_stack
from kong_plugins.engine_sim.faults import Faults
from kong_plugins.engine_sim.options import EngineOptions
from kong_plugins.engine_sim.server import serve_in_thread

RECORDED = Path(__file__).parents[1] / "data" / "vllm"
# As vllm/r1-tensor-parallel.yaml serves.
FULL = {
    "enable_force_include_usage": True,
    "enable_prompt_tokens_details": True,
    "enable_request_id_headers": True,
    "reasoning_parser": "deepseek_r1",
    "token_delay_ms": 0.5,
}


def grades(url: str) -> dict[str, Grade]:
    return {verdict.check: verdict.grade for verdict in verdicts(Probe(url).observe())}


def weak(**changes: object) -> set[str]:
    """The checks that are not fine on an engine with these flags."""
    with serve_in_thread(EngineOptions(**{**FULL, **changes})) as engine:  # type: ignore[arg-type]
        return {check for check, grade in grades(f"{engine.url}/v1").items() if grade is not Grade.FINE}


def test_nothing_is_found_on_an_engine_served_as_our_configs_do() -> None:
    assert weak() == set()


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"enable_force_include_usage": False}, {"usage without being asked"}),
        ({"enable_prompt_tokens_details": False}, {"cached_tokens", "cache_salt"}),
        ({"enable_prefix_caching": False}, {"cached_tokens", "cache_salt"}),
        ({"enable_request_id_headers": False}, {"X-Request-Id"}),
    ],
    ids=["usage", "details", "caching", "ids"],
)
def test_each_missing_flag_is_found_and_nothing_else(changes: dict[str, object], found: set[str]) -> None:
    assert weak(**changes) == found


def test_missing_details_and_missing_caching_are_told_apart() -> None:
    """The engine's own counter tells whether there were hits that usage does not show."""
    for changes, flag in (
        ({"enable_prompt_tokens_details": False}, "--enable-prompt-tokens-details; SGLang"),
        ({"enable_prefix_caching": False}, "--enable-prefix-caching"),
    ):
        with serve_in_thread(EngineOptions(**{**FULL, **changes})) as engine:  # type: ignore[arg-type]
            found = {verdict.check: verdict for verdict in verdicts(Probe(f"{engine.url}/v1").observe())}
        assert flag in found["cached_tokens"].fix


def test_an_engine_without_usage_is_missing_what_bills_are_made_of() -> None:
    with serve_in_thread(EngineOptions(**{**FULL, "faults": Faults(no_usage=True)})) as engine:  # type: ignore[arg-type]
        found = grades(f"{engine.url}/v1")
    assert found["usage of whole answers"] is Grade.MISSING
    assert found["usage of streams"] is Grade.MISSING
    assert found["usage on every chunk"] is Grade.WEAKER


def test_the_command_prints_verdicts_and_exits_by_them() -> None:
    cli = CliRunner()
    with serve_in_thread(EngineOptions(**{**FULL, "enable_request_id_headers": False})) as engine:  # type: ignore[arg-type]
        url = f"{engine.url}/v1"
        plain = cli.invoke(app, ["engine-check", url])
        assert plain.exit_code == 0
        assert "--enable-request-id-headers" in plain.output
        strict = cli.invoke(app, ["engine-check", url, "--strict", "--json"])
        assert strict.exit_code == 1
        assert [one["check"] for one in json.loads(strict.output) if one["grade"] == "weaker"] == ["X-Request-Id"]
    assert cli.invoke(app, ["engine-check", f"http://127.0.0.1:{free_port()}/v1"]).exit_code == 1
    assert cli.invoke(app, ["engine-check", "127.0.0.1:8000"]).exit_code == 2


def test_a_wrong_model_is_told_with_those_that_are_served() -> None:
    with serve_in_thread(EngineOptions(**FULL)) as engine:  # type: ignore[arg-type]
        (verdict,) = verdicts(Probe(f"{engine.url}/v1").observe("gpt-5"))
    assert verdict.grade is Grade.MISSING
    assert "deepseek-r1" in verdict.seen


def test_up_refuses_an_engine_that_cannot_be_billed_exactly(tmp_path: Path) -> None:
    """Before a gateway takes requests; the message names what is missing and the flag."""
    with (
        serve_in_thread(EngineOptions(**{**FULL, "faults": Faults(no_usage=True)})) as engine,  # type: ignore[arg-type]
        ExitStack() as resources,
    ):
        options = StackOptions(
            config=default_config(), gateway=Gateway.LOCAL, upstream=f"{engine.url}/v1", port=0, data_dir=tmp_path
        )
        with pytest.raises(StackError, match=r"usage of streams[\s\S]*--enable-force-include-usage"):
            start_stack(options, resources, lambda _: None)


@contextmanager
def replayed(answers: dict[str, str]) -> Iterator[str]:
    """A server that answers with recorded bytes. Keys: GET's path, or what a request is for."""

    class Handler(BaseHTTPRequestHandler):
        salts: tuple[str, ...] = ()

        def do_GET(self) -> None:
            self._send(answers[self.path])

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            salt = body.get("cache_salt")
            if "priority" in body:
                self._send(answers["priority"])
            elif body.get("stream"):
                self._send(answers["asked" if "stream_options" in body else "unasked"])
            elif salt in Handler.salts:
                self._send(answers["again"])
            else:
                self._send(answers["other" if Handler.salts else "whole"])
                Handler.salts += (salt,)

        def _send(self, name: str) -> None:
            self.wfile.write((RECORDED / name).read_bytes())
            self.close_connection = True

        def log_message(self, *_: object) -> None:
            """Nothing on standard error."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_recorded_vllm_with_the_flags_is_read_as_it_was() -> None:
    """vLLM 0.32's own bytes; it was started without --enable-request-id-headers, and its page stands still here."""
    answers = {
        "/v1/models": "main/02-models.resp",
        "/metrics": "main/70-metrics-end.resp",
        "whole": "main/10-chat.resp",
        "again": "main/16-chat-salt-a2.resp",
        "other": "main/16-chat-salt-b1.resp",
        "asked": "main/22-stream-continuous.resp",
        "unasked": "main/20-stream.resp",
        "priority": "extra/15-prio.resp",
    }
    with replayed(answers) as url:
        found = {verdict.check: verdict for verdict in verdicts(Probe(url).observe())}
    assert {check for check, one in found.items() if one.grade is not Grade.FINE} == {"X-Request-Id", "metrics"}
    assert found["cached_tokens"].seen.startswith("128 of 245")
    assert found["context length"].seen.startswith("8192 ")


def test_a_recorded_vllm_without_the_flags_lacks_them() -> None:
    """The same engine with default flags: usage when asked for, and no cached tokens."""
    answers = {
        "/v1/models": "main/02-models.resp",
        "/metrics": "plain/32-metrics.resp",
        "whole": "plain/10-chat.resp",
        "again": "plain/11-chat-repeat.resp",
        "other": "plain/10-chat.resp",
        "asked": "plain/22-stream-continuous.resp",
        "unasked": "plain/20-stream.resp",
        "priority": "extra/15-prio.resp",
    }
    with replayed(answers) as url:
        found = grades(url)
    assert found["usage on every chunk"] is Grade.FINE
    assert {check for check, grade in found.items() if grade is Grade.WEAKER} >= {
        "usage without being asked",
        "cached_tokens",
    }
    assert Grade.MISSING not in found.values()
