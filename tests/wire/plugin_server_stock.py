"""Stock kong-pdk serving the probe: what the hazards are shown against."""

from kong_pdk.cli import start_dedicated_server
from plugin_server_probe import NAME, PRIORITY, SCHEMA, VERSION, Plugin

start_dedicated_server(NAME, Plugin, VERSION, PRIORITY, SCHEMA)
