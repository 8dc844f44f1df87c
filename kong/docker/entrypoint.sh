#!/bin/sh
# In front of Kong's own entry point, which prepares the prefix, removes sockets that a killed container left, sends the
# logs to stdout and stderr, and reads KONG_…_FILE. We bring what it does not know: the ledger, the keys, the sockets.
set -eu
home=$(dirname "$(dirname "$(readlink -f "$0")")")
. "$home/docker/environment.sh"
kong_environment $$ # `exec` keeps the number
if [ "${1:-}" = kong ] && [ "${2:-}" = docker-start ]; then
  mkdir -p "$KONG_PREFIX"
  render
fi
exec /docker-entrypoint.sh "$@"
