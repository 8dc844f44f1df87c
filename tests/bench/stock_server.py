"""token-quota under stock kong-pdk's own server (gevent mode), for comparison in the same run."""

from __future__ import annotations

from kong_pdk.cli import start_dedicated_server

from kong_plugins.token_quota import plugin

if __name__ == "__main__":
    start_dedicated_server(plugin.NAME, plugin.Plugin, plugin.VERSION, plugin.PRIORITY, plugin.SCHEMA)
