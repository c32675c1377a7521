"""Requests through `pdrelay sidecar`, whose P a header names, against a single server; and who of the prefill engines worked.

usage: sidecar.py RELAY SINGLE DECODE_ENGINE CHOSEN PREFILL_ENGINE...     base URLs

CHOSEN is one of the prefill engines: every prompt must be worked on by that one, and by no other, and come to D by KV
transfer. Or `none`: no header is sent, and D works alone. env: HEADER=x-prefiller-host-port, those of same_text.py
"""

import os
import pathlib
import subprocess
import sys
import time

from forwarder import metric

RELAY, SINGLE, DECODE, CHOSEN, *PREFILL = [part.rstrip("/") for part in sys.argv[1:]]


def worked():
    return {url: metric(url, "vllm:prompt_tokens_total") for url in PREFILL}


def settled():
    """The same, once it no longer moves: engines count a moment after they answer."""
    last = None
    while (now := worked()) != last:
        last = now
        time.sleep(0.5)
    return now


env = {**os.environ, "SOURCE": "local_compute"}
if CHOSEN != "none":
    header = os.environ.get("HEADER", "x-prefiller-host-port")
    url = CHOSEN if header == "x-prefiller-url" else CHOSEN.removeprefix("http://")
    env |= {"SOURCE": "external_kv_transfer", "HEADERS": f"{header}: {url}"}
before = settled()
done = subprocess.run([sys.executable, pathlib.Path(__file__).parent / "same_text.py", RELAY, SINGLE, DECODE], env=env)
moved = {url: now - before[url] for url, now in settled().items()}
right = all((tokens > 0) == (url == CHOSEN) for url, tokens in moved.items())
print(f"  {'' if right else 'BAD '}prompt tokens worked on by {', '.join(f'{url}: {tokens:.0f}' for url, tokens in moved.items())}; named: {CHOSEN}")
sys.exit(done.returncode or not right)
