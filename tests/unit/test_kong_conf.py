"""kong/kong.conf, which the image runs with, against what `token-quota kong-conf` prints for other Kongs."""

from __future__ import annotations

from pathlib import Path

from kong_plugins.cli.kong_node import settings

CONF = Path(__file__).parents[2] / "kong" / "kong.conf"


def _settings(text: str) -> dict[str, str]:
    lines = (line.partition(" = ") for line in text.splitlines() if line and not line.startswith("#"))
    return {key: value for key, _, value in lines}


def test_the_images_settings_are_those_that_kong_conf_prints() -> None:
    """An operator who merges the printed lines runs what the image runs; only where Lua lies differs."""
    conf = _settings(CONF.read_text())
    printed = settings(Path("/usr/local/kong"), python="/opt/token-quota/bin/python")
    assert conf["lua_package_path"].startswith("/opt/token-quota/share/token-quota/?.lua")
    for key in printed.keys() - {"lua_package_path"}:
        assert conf[key] == printed[key], key


def test_every_setting_is_named_once() -> None:
    """Of a name that occurs twice Kong would silently take the last."""
    names = [line.partition(" = ")[0] for line in CONF.read_text().splitlines() if line and not line.startswith("#")]
    assert len(names) == len(set(names))
