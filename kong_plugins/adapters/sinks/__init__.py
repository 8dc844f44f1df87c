"""Where billing events go: each sink a module of its own, named by a URL."""

from kong_plugins.adapters.sinks.opening import open_sink

__all__ = ["open_sink"]
