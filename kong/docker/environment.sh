# Sourced by the scripts beside it: what files say (secrets, above all) as the environment that the command behind us
# reads. `home` is where the virtual environment is.

die() {
  echo "token-quota: $*" >&2
  exit 1
}

# A secret's text, without the newline that editors leave.
secret() {
  [ -r "$1" ] || die "cannot read $1: make the file readable for uid $(id -u), or name another"
  cat "$1"
}

# TOKEN_QUOTA_LEDGER_URL_FILE holds the whole URL. TOKEN_QUOTA_LEDGER_PASSWORD_FILE holds a password for the one in
# TOKEN_QUOTA_LEDGER_URL: an orchestrator's secret is a password, and a URL with one in it would be in every listing.
if [ -n "${TOKEN_QUOTA_LEDGER_URL_FILE:-}" ]; then
  TOKEN_QUOTA_LEDGER_URL=$(secret "$TOKEN_QUOTA_LEDGER_URL_FILE")
  export TOKEN_QUOTA_LEDGER_URL
elif [ -n "${TOKEN_QUOTA_LEDGER_PASSWORD_FILE:-}" ]; then
  [ -n "${TOKEN_QUOTA_LEDGER_URL:-}" ] || die "TOKEN_QUOTA_LEDGER_PASSWORD_FILE needs TOKEN_QUOTA_LEDGER_URL"
  password=$(secret "$TOKEN_QUOTA_LEDGER_PASSWORD_FILE")
  case $password in
    "" | *[!A-Za-z0-9._~-]*)
      die "the password in $TOKEN_QUOTA_LEDGER_PASSWORD_FILE goes into a URL: letters, digits and . _ ~ - only" ;;
  esac
  case $TOKEN_QUOTA_LEDGER_URL in
    *://*@*) die "TOKEN_QUOTA_LEDGER_URL names a user or password already: leave TOKEN_QUOTA_LEDGER_PASSWORD_FILE out" ;;
  esac
  TOKEN_QUOTA_LEDGER_URL="${TOKEN_QUOTA_LEDGER_URL%%://*}://:$password@${TOKEN_QUOTA_LEDGER_URL#*://}"
  export TOKEN_QUOTA_LEDGER_URL
  unset password
fi

# Kong's prefix, and the plugin servers' sockets in it: a read-only container has its prefix elsewhere than kong.conf.
# $1: the process that is Kong, or becomes it. Kong logs what its plugin servers say at `info` only, which is off: an event
# that was lost would be nowhere. They write it themselves too, to where Kong's own error log goes.
kong_environment() {
  KONG_PREFIX=${KONG_PREFIX:-/usr/local/kong}
  KONG_PREFIX=${KONG_PREFIX%/}
  export KONG_PREFIX
  log=/proc/$1/fd/2
  { true >>"$log"; } 2>/dev/null || log=/dev/null # a socket cannot be opened
  server() {
    export "KONG_PLUGINSERVER_$1_SOCKET=$KONG_PREFIX/$3.sock"
    export "KONG_PLUGINSERVER_$1_START_CMD=$home/bin/python -m $2 --kong-prefix $KONG_PREFIX --socket-name $3.sock --log-file $log"
    export "KONG_PLUGINSERVER_$1_QUERY_CMD=$home/bin/python -m $2 --dump"
  }
  server TOKEN_QUOTA kong_plugins.token_quota token-quota
  server BILLING_EVENTS kong_plugins.billing_events billing-events
}

# DB-less Kong takes a file without references: the decK file in TOKEN_QUOTA_CONFIG with its ${{ env "DECK_…" }} filled
# in, from NAME=VALUE lines in TOKEN_QUOTA_KEYS_FILE too. Without a decK file (Kong Ingress Controller, a database)
# there is nothing to render. Keys stay out of Kong's own environment, and a file that cannot be rendered out of Kong.
render() {
  config=${TOKEN_QUOTA_CONFIG:-/etc/token-quota/kong.yaml}
  [ -f "$config" ] || return 0
  KONG_DECLARATIVE_CONFIG=${KONG_DECLARATIVE_CONFIG:-$KONG_PREFIX/token-quota.yaml}
  export KONG_DECLARATIVE_CONFIG
  (
    umask 077
    if [ -n "${TOKEN_QUOTA_KEYS_FILE:-}" ]; then
      keys=$(secret "$TOKEN_QUOTA_KEYS_FILE") || exit 1
      while IFS='=' read -r name value; do
        case $name in
          DECK_*[!A-Z0-9_]*) die "$TOKEN_QUOTA_KEYS_FILE: ${name%%[!A-Z0-9_]*}… is no name of a key" ;;
          DECK_*) export "$name=$value" ;;
          "" | \#*) ;;
          *) die "$TOKEN_QUOTA_KEYS_FILE: every line is DECK_NAME=KEY, and one does not begin with DECK_" ;;
        esac
      done <<LINES
$keys
LINES
    fi
    "$home/bin/token-quota" render "$config" >"$KONG_DECLARATIVE_CONFIG.new" || exit 1 # -e does not hold in here
    mv "$KONG_DECLARATIVE_CONFIG.new" "$KONG_DECLARATIVE_CONFIG"
  ) || exit 1
}
