"""`token-quota salt`: which key and which tenant a salt in the engine is of."""

from __future__ import annotations

from typer.testing import CliRunner

from kong_plugins.cli.main import app
from kong_plugins.domain.salts import SaltKey, Sharing, salt_of

NEW, OLD = "0123456789abcdef-new", "0123456789abcdef-old"


def test_every_key_known_has_its_line_the_one_in_use_first() -> None:
    environ = {"TOKEN_QUOTA_CACHE_SALT_KEY": f"k2:{NEW} k1:{OLD}"}
    shown = CliRunner().invoke(app, ["salt", "acme"], env=environ)
    assert shown.exit_code == 0
    keys = SaltKey("k2", NEW), SaltKey("k1", OLD)
    assert shown.stdout.split() == [salt_of(Sharing.TENANT, "acme", key) for key in keys]
    group = CliRunner().invoke(app, ["salt", "research", "--kind", "group"], env={"TOKEN_QUOTA_CACHE_SALT_KEY": ""})
    assert group.stdout.split() == [salt_of(Sharing.GROUP, "research")]


def test_what_is_wrong_is_said_without_the_secret() -> None:
    for arguments in (["salt", "acme", "--kind", "all"], ["salt", "acme", "--keys", f"k1:{NEW} k1:{OLD}"]):
        refused = CliRunner().invoke(app, arguments)
        assert refused.exit_code == 2
        assert refused.stderr.startswith("token-quota salt: ")
        assert NEW not in refused.stderr
