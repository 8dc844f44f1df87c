"""``python -m kong_plugins.billing_events``: the plugin server of billing-events alone."""

import sys

from kong_plugins.plugin_server import serve

if __name__ == "__main__":
    sys.exit(serve(["kong_plugins.billing_events.plugin"]))
