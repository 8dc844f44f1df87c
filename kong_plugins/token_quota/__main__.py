"""``python -m kong_plugins.token_quota``: the plugin server of token-quota alone."""

import sys

from kong_plugins.plugin_server import serve

if __name__ == "__main__":
    sys.exit(serve(["kong_plugins.token_quota.plugin"]))
