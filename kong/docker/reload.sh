#!/bin/sh
# `docker compose exec kong token-quota-reload`: the decK file and the keys are read again, then Kong reloads. Requests in
# flight end on the old workers. A file that Kong refuses leaves the running configuration as it is.
set -eu
home=$(dirname "$(dirname "$(readlink -f "$0")")")
. "$home/docker/environment.sh"
kong_environment "$(cat "${KONG_PREFIX:-/usr/local/kong}/pids/nginx.pid")"
export KONG_NGINX_DAEMON="${KONG_NGINX_DAEMON:-off}"
render
exec kong reload --prefix "$KONG_PREFIX"
