#!/bin/sh
# Make up what docker-compose.yml reads from ./secrets and is not there yet. What is there stays as it is.
#   sh deploy/docker/make-secrets.sh [DIRECTORY [DECK_FILE]]
# Values of DECK_… variables that are set are taken; the others are made up and kept in DIRECTORY/kong/tenant_keys.
#
# The directory is closed to other users of this machine (0700). The files are open (0644), because a container's user is
# nobody that this machine knows: Compose mounts them as they are.
set -eu
root=$(dirname "$(dirname "$(dirname "$(readlink -f "$0")")")")
directory=${1:-secrets}
config=${2:-$root/kong/kong.yaml}
[ -r "$config" ] || { echo "make-secrets: cannot read $config: name a decK file" >&2; exit 1; }

random() {
  od -An -N24 -tx1 /dev/urandom | tr -d ' \n'
}

mkdir -p "$directory"
chmod 700 "$directory"
umask 022
for name in ledger_password collector_token clickhouse_password grafana_password; do
  [ -s "$directory/$name" ] || random >"$directory/$name"
done
mkdir -p "$directory/kong"
keys=$directory/kong/tenant_keys
touch "$keys"
# DECK_COLLECTOR_TOKEN: for an http-log that posts to the collector.
for name in $(grep -o 'env "DECK_[A-Z0-9_]*"' "$config" | cut -d '"' -f 2 | sort -u) DECK_COLLECTOR_TOKEN; do
  grep -q "^$name=" "$keys" && continue
  value=$(printenv "$name" || true)
  if [ "$name" = DECK_COLLECTOR_TOKEN ] && [ -z "$value" ]; then
    value=$(cat "$directory/collector_token")
  fi
  echo "$name=${value:-sk-$(random)}" >>"$keys"
done
