"""Stock kong-pdk serving the probe: what the hazards are shown against. PROBE_MODULE names another module's probe."""

import importlib
import os

from kong_pdk.cli import start_dedicated_server

probe = importlib.import_module(os.environ.get("PROBE_MODULE", "plugin_server_probe"))
start_dedicated_server(probe.NAME, probe.Plugin, probe.VERSION, probe.PRIORITY, probe.SCHEMA)
