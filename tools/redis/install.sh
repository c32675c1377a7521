#!/usr/bin/env bash
# Installs redis-server from the system's packages, for the tests that start one
# of its own on its own port. Without it those tests pass without having asked a real server.
set -euo pipefail

if command -v redis-server >/dev/null; then
    redis-server --version
    exit 0
fi
as_root=()
[ "$(id -u)" = 0 ] || as_root=(sudo)
"${as_root[@]}" apt-get update -qq
# No service: only the program is wanted.
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get install -y -qq --no-install-recommends redis-server
redis-server --version
