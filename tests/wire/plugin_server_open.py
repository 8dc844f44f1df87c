"""The probe, but failing open, and with everything optional."""

from plugin_server_probe import PRIORITY, SCHEMA, VERSION, Plugin

__all__ = ["PRIORITY", "SCHEMA", "VERSION", "Plugin"]
NAME = "open-probe"
ON_ERROR = "open"
PROTOCOLS = ["http", "https"]
ENTITY_CHECKS = [{"at_least_one_of": ["config.tag", "config.script"]}]
