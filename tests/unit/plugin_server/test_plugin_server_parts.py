"""The parts of the plugin server that need no process."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from kong_plugins.plugin_server import frames, logs
from kong_plugins.plugin_server.ancestry import Parent
from kong_plugins.plugin_server.instances import Instances, instance_id_of
from kong_plugins.plugin_server.pdk import Pdk, PDKException
from kong_plugins.plugin_server.plugins import LoadedPlugin, PluginError
from kong_plugins.plugin_server.redaction import message_of, redact, secrets_of
from kong_plugins.plugin_server.socket_file import SocketFile


def plugin_module(**attributes: Any) -> ModuleType:
    class Plugin:
        def __init__(self, config: dict[str, Any]) -> None:
            self.config = config

        def access(self, kong: Any) -> None:
            pass

    module = ModuleType("my_plugin")
    module.__dict__.update({"Plugin": Plugin, "VERSION": "1.2.3", "PRIORITY": 5, **attributes})
    return module


def test_an_instance_id_says_which_row_and_config_it_is() -> None:
    """Key order and Kong's load counter do not count, everything else does."""
    one = instance_id_of("p", {"a": 1, "b": {"c": [1]}, "__seq__": 1, "__plugin_id": "x"})
    assert one == instance_id_of("p", {"__plugin_id": "x", "b": {"c": [1]}, "a": 1, "__seq__": 2})
    others = [
        instance_id_of("q", {"a": 1, "b": {"c": [1]}, "__plugin_id": "x"}),
        instance_id_of("p", {"a": 2, "b": {"c": [1]}, "__plugin_id": "x"}),
        instance_id_of("p", {"a": 1, "b": {"c": [1]}, "__plugin_id": "y"}),
    ]
    assert len({one, *others}) == 4


def test_an_instance_id_is_the_same_in_every_process() -> None:
    """Kong may hold one from the process before."""
    assert instance_id_of("p", {"a": 1}) == "p-2c6b113b8dd15ffbded9860b43eb0c6c"


def test_a_failed_start_leaves_no_instance_and_blocks_no_later_one() -> None:
    class Picky:
        def __init__(self, config: dict[str, Any]) -> None:
            if not hasattr(Picky, "ready"):
                raise ValueError("not yet")

        def log(self, kong: Any) -> None:
            pass

    instances = Instances([LoadedPlugin(plugin_module(NAME="p", Plugin=Picky))], limit=10, idle_s=60)
    with pytest.raises(ValueError, match="not yet"):
        instances.start("p", "{}", lambda: 0.0)
    assert len(instances) == 0
    Picky.ready = True  # type: ignore[attr-defined]
    assert instances.start("p", "{}", lambda: 0.0).users == 1


@pytest.mark.parametrize(
    ("attributes", "text"),
    [
        ({"VERSION": "1.2"}, "Kong takes"),
        ({"PRIORITY": "high"}, "Kong takes an integer"),
        ({"Plugin": None}, "no class Plugin"),
        ({"Plugin": type("Plugin", (), {})}, "none of Kong's phases"),
        ({"ON_ERROR": "maybe"}, '"closed" or "open"'),
    ],
)
def test_a_module_kong_would_refuse_is_refused_with_the_fix(attributes: dict[str, Any], text: str) -> None:
    with pytest.raises(PluginError, match=text):
        LoadedPlugin(plugin_module(**attributes))


def test_a_module_in_kong_pdks_own_form_works() -> None:
    module = plugin_module(version="0.3.0", priority=7, Schema=[{"a": {"type": "string"}}])
    del module.VERSION, module.PRIORITY
    plugin = LoadedPlugin(module)
    assert (plugin.name, plugin.version, plugin.priority, plugin.schema) == (
        "my-plugin",
        "0.3.0",
        7,
        [{"a": {"type": "string"}}],
    )


def test_secrets_are_found_wherever_the_schema_marks_them() -> None:
    secret = {"type": "string", "referenceable": True}
    schema = [
        {"key": {"type": "string", "encrypted": True}},
        {"redis": {"type": "record", "fields": [{"password": secret}, {"host": {"type": "string"}}]}},
        {"list": {"type": "array", "elements": secret}},
        {"map": {"type": "map", "keys": {"type": "string"}, "values": secret}},
        {"rows": {"type": "array", "elements": {"type": "record", "fields": [{"token": secret}]}}},
    ]
    config = {
        "key": "k1",
        "redis": {"password": "p1", "host": "localhost"},
        "list": ["l1", "l2"],
        "map": {"x": "m1"},
        "rows": [{"token": "t1"}],
    }
    assert set(secrets_of(schema, config)) == {"k1", "p1", "l1", "l2", "m1", "t1"}


def test_passwords_in_urls_are_redacted_anyway() -> None:
    assert redact("redis://user:pw@host:6379/0 failed", ()) == "redis://user:***@host:6379/0 failed"


def test_a_message_is_one_bounded_line() -> None:
    text = message_of(ValueError("a\nb\udcff" + "c" * 1000), ())
    assert text.startswith("ValueError: a b\\udcff")
    assert "\n" not in text
    assert len(text) == 500


def test_pdk_names_are_made_once_and_log_arguments_become_text() -> None:
    calls: list[tuple[str, tuple[Any, ...]]] = []
    kong = Pdk("kong", lambda method, args: calls.append((method, args)))
    kong.log.err(1.5, None, {"a": True}, "x")
    kong.ctx.shared.set("k", None)
    assert calls == [("kong.log.err", ("1.5", "None", {"a": True}, "x")), ("kong.ctx.shared.set", ("k", None))]
    assert kong.ctx.shared.set is kong.ctx.shared.set
    assert str(kong.ctx.shared) == "kong.ctx.shared"
    assert len(calls) == 2


def test_pdk_calls_outside_an_event_are_refused() -> None:
    from kong_plugins.plugin_server.events import call_kong

    with pytest.raises(PDKException, match="event's own greenlet"):
        Pdk("kong", call_kong).request.get_method()


@pytest.mark.parametrize("value", ["é", "v\udcff\udc80", {1: 1, 3: 3}, b"\xff", [None, 1.0, 2**53]])
def test_frames_carry_what_kong_sends_both_ways(value: object) -> None:
    unpacker = frames.unpacker()
    unpacker.feed(frames.response(1, value))
    assert next(unpacker) == [1, 1, None, value]


def test_a_socket_is_published_whole_and_withdrawn_by_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "x.sock"
    first = SocketFile(path, 0o600, 1)
    assert not path.exists()
    assert first.is_free()
    first.publish()
    second = SocketFile(path, 0o600, 1)
    assert not second.is_free()
    second.publish()
    assert first.is_replaced()
    first.withdraw()
    assert not second.is_replaced()
    second.withdraw()
    assert list(tmp_path.iterdir()) == []


def test_a_socket_whose_directory_is_gone_can_be_withdrawn(tmp_path: Path) -> None:
    """Else the server's end broke off there, before its instances were closed."""
    directory = tmp_path / "prefix"
    directory.mkdir()
    file = SocketFile(directory / "x.sock", 0o600, 1)
    file.publish()
    shutil.rmtree(directory)
    file.withdraw()
    assert file.socket.fileno() == -1


def test_a_parent_that_is_not_kong_is_not_watched() -> None:
    """Also where it is PID 1."""
    assert not Parent("auto").watched
    assert Parent("always").watched
    assert not Parent("always").is_gone()


def test_a_log_record_is_one_line_with_its_level(capsys: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    before = root.handlers[:], root.level
    try:
        logs.configure(logging.INFO, None)
        logging.getLogger("redis").warning("two\nlines")
        assert capsys.readouterr().err == "[warning] two\\nlines\n"
    finally:
        root.handlers[:], _ = before
        root.setLevel(before[1])
