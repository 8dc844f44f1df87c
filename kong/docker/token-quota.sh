#!/bin/sh
# `token-quota` with the ledger's URL put together as for Kong: `docker compose exec kong token-quota quota show tenant_a`.
set -eu
home=$(dirname "$(dirname "$(readlink -f "$0")")")
. "$home/docker/environment.sh"
exec "$home/bin/token-quota" "$@"
