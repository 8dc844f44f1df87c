"""The `token-quota` command: `up`, `demo`, `quota …`, `reference`."""

from kong_plugins.cli.main import main

__all__ = ["main"]
