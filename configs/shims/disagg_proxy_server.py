#!/usr/bin/env python3
"""Stands where LMCache's disagg_proxy_server.py stood, so that old start scripts run pdrelay.

PDRELAY names the binary; without it, `pdrelay` is looked for on the PATH.
"""

import os
import sys

pdrelay = os.environ.get("PDRELAY", "pdrelay")
try:
    os.execvp(pdrelay, [pdrelay, "lmcache", *sys.argv[1:]])
except OSError as error:
    sys.exit(f"cannot start {pdrelay}: {error.strerror}; put pdrelay on the PATH, or name it with PDRELAY=")
