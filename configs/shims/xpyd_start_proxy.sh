#!/usr/bin/env bash
# Stands where xPyD-proxy's start script stood: the same flags and variables, on pdrelay.
# PDRELAY names the binary; without it, `pdrelay` is looked for on the PATH.
pdrelay=${PDRELAY:-pdrelay}
command -v "$pdrelay" >/dev/null || {
  echo "ERROR: cannot find $pdrelay; put pdrelay on the PATH, or name it with PDRELAY=" >&2
  exit 1
}
exec "$pdrelay" xpyd-start "$@"
