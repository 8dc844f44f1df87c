#!/bin/sh
# Red until Kong's proxy and both plugin servers answer.
set -eu
kong health >/dev/null
for name in token-quota billing-events; do
  /opt/token-quota/bin/python -c 'import socket, sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1])' "/usr/local/kong/$name.sock"
done
