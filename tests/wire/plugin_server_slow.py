"""The probe, imported only once somebody has opened the pipe named in SLOW_IMPORT and closed it again."""

import os
from pathlib import Path

from plugin_server_probe import NAME, PRIORITY, SCHEMA, VERSION, Plugin

__all__ = ["NAME", "PRIORITY", "SCHEMA", "VERSION", "Plugin"]
Path(os.environ["SLOW_IMPORT"]).read_bytes()  # to the end: opening alone returns as soon as there is a writer
