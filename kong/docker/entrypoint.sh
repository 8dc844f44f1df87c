#!/bin/sh
# Fill the decK file's ${{ env "DECK_…" }} references in for DB-less Kong, then hand over to Kong's own entry point.
set -eu
umask 077
/opt/token-quota/bin/python -m kong_plugins.cli render /etc/token-quota/kong.yaml > "$KONG_DECLARATIVE_CONFIG"
exec /docker-entrypoint.sh "$@"
