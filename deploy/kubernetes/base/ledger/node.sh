#!/bin/sh
# One node of the ledger: three of them, each with a Sentinel.
#   node.sh data       its Valkey: as the primary that the Sentinels name, or as a replica of it
#   node.sh sentinel   its Sentinel
#   node.sh leave      before it ends: hand the primary's part to another, and wait until that is done
#   node.sh alive      exit status 0: its Valkey answers
#
# Nothing is decided alone. A Valkey starts when a majority of the Sentinels has said who the primary is; and never as an
# empty primary where there have been replicas: they would follow it into emptiness, and every budget would be full again.
#
# Environment: LEDGER_NODES, HOST:PORT:SENTINEL_PORT of each, separated by blanks, the same order everywhere;
# LEDGER_SELF, this one's; LEDGER_DATA, a directory that stays; LEDGER_RUN, one in memory; LEDGER_PASSWORD_FILE.
# Optional: LEDGER_BIND, LEDGER_MAXMEMORY, LEDGER_DOWN_AFTER_MS.
set -eu

SERVICE=ledger
BIND=${LEDGER_BIND:-* -::*}
DOWN_AFTER_MS=${LEDGER_DOWN_AFTER_MS:-5000}

say() {
  echo "ledger $LEDGER_SELF: $*" >&2
}

host_of() { echo "${1%%:*}"; }
port_of() { rest=${1#*:}; echo "${rest%%:*}"; }
sentinel_port_of() { echo "${1##*:}"; }

first_node() { echo "${LEDGER_NODES%% *}"; }

majority() {
  set -- $LEDGER_NODES
  echo $(($# / 2 + 1))
}

password() { cat "$LEDGER_PASSWORD_FILE"; }

# What each Sentinel that answers says: EPOCH HOST PORT REPLICAS, one a line.
answers() {
  for node in $LEDGER_NODES; do
    timeout 2 valkey-cli -h "$(host_of "$node")" -p "$(sentinel_port_of "$node")" sentinel master $SERVICE 2>/dev/null |
      awk 'NR % 2 { name = $0; next } { value[name] = $0 }
        END { if (value["ip"] != "") print value["config-epoch"], value["ip"], value["port"], value["num-slaves"] }' || true
  done
}

# The newest of these lines: a higher epoch is a later failover.
newest() { sort -n -k1,1 | tail -n 1; }

# Until a majority has said it; sets primary_host, primary_port.
find_primary() {
  self_host=$(host_of "$LEDGER_SELF")
  self_port=$(port_of "$LEDGER_SELF")
  said=
  while :; do
    lines=$(answers)
    count=$(echo "$lines" | grep -c . || true)
    why="$count of $(majority) Sentinels answer"
    if [ "$count" -ge "$(majority)" ]; then
      set -- $(echo "$lines" | newest)
      primary_host=$2 primary_port=$3
      replicas=$(echo "$lines" | awk '$4 > most { most = $4 } END { print most + 0 }')
      if [ "$primary_host:$primary_port" != "$self_host:$self_port" ] || [ "$replicas" = 0 ] ||
        [ -d "$LEDGER_DATA/appendonlydir" ]; then
        return
      fi
      why="I am the primary, my data is gone, and there are replicas: one of them takes over"
    fi
    [ "$why" = "$said" ] || say "waiting: $why"
    said=$why
    sleep 0.5
  done
}

data() {
  find_primary
  umask 077
  # Files, because arguments are in every list of processes.
  {
    echo "requirepass $(password)"
    echo "primaryauth $(password)"
    echo "bind $BIND"
    if [ "$primary_host:$primary_port" != "$self_host:$self_port" ]; then
      echo "replicaof $primary_host $primary_port"
    fi
  } >"$LEDGER_RUN/valkey.conf"
  say "the primary is $primary_host:$primary_port"
  # A primary that no replica follows refuses to write: what it took would be forgotten at the failover. A replica tells
  # once a second how far it is; one that has been silent for more than three does not follow.
  exec valkey-server "$LEDGER_RUN/valkey.conf" --port "$self_port" --dir "$LEDGER_DATA" \
    --replica-announce-ip "$self_host" --replica-announce-port "$self_port" \
    --appendonly yes --appendfsync everysec --save '' --min-replicas-to-write 1 --min-replicas-max-lag 3 \
    --maxmemory "${LEDGER_MAXMEMORY:-768mb}" --maxmemory-policy noeviction
}

sentinel() {
  umask 077
  self_host=$(host_of "$LEDGER_SELF")
  conf=$LEDGER_DATA/sentinel.conf
  if [ ! -s "$conf" ]; then
    set -- $(answers | newest)
    if [ $# -lt 3 ]; then # nobody knows better: the beginning
      first=$(first_node)
      set -- 0 "$(host_of "$first")" "$(port_of "$first")"
    fi
    # A Sentinel does not start with a name that cannot be looked up. (An address always can.)
    until getent ahosts "$2" >/dev/null; do sleep 0.5; done
    {
      echo "bind $BIND"
      echo "sentinel resolve-hostnames yes"
      echo "sentinel announce-hostnames yes"
      echo "sentinel monitor $SERVICE $2 $3 $(majority)"
      echo "sentinel down-after-milliseconds $SERVICE $DOWN_AFTER_MS"
      echo "sentinel failover-timeout $SERVICE $((DOWN_AFTER_MS * 6))"
      echo "sentinel parallel-syncs $SERVICE 1"
      echo "sentinel announce-ip $self_host"
      echo "sentinel announce-port $(sentinel_port_of "$LEDGER_SELF")"
    } >"$conf.new"
    mv "$conf.new" "$conf"
  fi
  # It keeps what it knows in this file; the password may have changed since.
  grep -v "^sentinel auth-pass " "$conf" >"$conf.new"
  echo "sentinel auth-pass $SERVICE $(password)" >>"$conf.new"
  mv "$conf.new" "$conf"
  exec valkey-server "$conf" --sentinel --port "$(sentinel_port_of "$LEDGER_SELF")" \
    --protected-mode no --dir "$LEDGER_DATA"
}

# The own Valkey's answer. Both names, as the variable was renamed.
local_cli() {
  VALKEYCLI_AUTH=$(password)
  REDISCLI_AUTH=$VALKEYCLI_AUTH
  export VALKEYCLI_AUTH REDISCLI_AUTH
  timeout 2 valkey-cli -h "$(host_of "$LEDGER_SELF")" -p "$(port_of "$LEDGER_SELF")" "$@"
}

leave() {
  asked=
  for _ in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
    [ "$(local_cli role 2>/dev/null | head -n 1)" = master ] || return 0
    if [ -z "$asked" ]; then
      for node in $LEDGER_NODES; do
        [ "$node" = "$LEDGER_SELF" ] && continue
        # Coordinated: the old primary takes no writes until the next one has all of them. Otherwise what it still takes
        # is lost.
        if timeout 2 valkey-cli -h "$(host_of "$node")" -p "$(sentinel_port_of "$node")" \
          sentinel failover $SERVICE coordinated 2>/dev/null | grep -q OK; then
          asked=yes
          break
        fi
      done
    fi
    sleep 1
  done
  say "no other took the primary's part in time"
}

alive() {
  local_cli ping | grep -q PONG
}

case ${1:-} in
data | sentinel | leave | alive) "$1" ;;
*) sed -n '2,/^set -eu/p' "$0" | grep '^#' | cut -c 3- >&2; exit 2 ;;
esac
