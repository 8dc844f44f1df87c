"""``python -m kong_plugins.plugin_server --plugin MODULE [--plugin MODULE …] [kong-pdk's options]``."""

import sys

from kong_plugins.plugin_server.command_line import serve

if __name__ == "__main__":
    sys.exit(serve())
