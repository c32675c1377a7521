"""The real client as a load: `vllm bench serve`, unmodified, from tools/real-engine. It is Python and slow, so it says what a
user's benchmark would see, not where a proxy's limits are."""

import os
import re
import subprocess

from originals import ROOT

from . import usage
from .engine import MODEL

PROMPTS, OUT = 96, 64


def bench_serve(lab, peer):
    script = ROOT / "tools" / "real-engine" / "bench-serve.sh"
    settings = {"NAME": MODEL, "N": PROMPTS, "CONC": 16, "IN": 200, "OUT": OUT}
    environment = {**os.environ, **{name: str(value) for name, value in settings.items()}}
    before = usage.cpu_s(peer.pids)
    done = subprocess.run(
        ["bash", script, f"http://127.0.0.1:{peer.port}"],
        env=environment,
        capture_output=True,
        text=True,
        preexec_fn=lambda: os.sched_setaffinity(0, lab.load_cpus),
    )
    used = usage.cpu_s(peer.pids) - before
    line = (done.stdout.strip().splitlines() or [""])[-1]
    found = re.search(r"TTFT p50 ([\d.]+) p99 ([\d.]+) ms, ITL p50 ([\d.]+) p99 ([\d.]+)", line)
    row = {"cpu_us": used * 1e6 / PROMPTS, "cpu_us_per_chunk": used * 1e6 / (PROMPTS * OUT), "line": line}
    if done.returncode or not found:
        row["error"] = (done.stdout + done.stderr)[-400:]
    else:
        numbers = [float(number) * 1e3 for number in found.groups()]
        row["ttft"], row["itl"] = dict(p50=numbers[0], p99=numbers[1]), dict(p50=numbers[2], p99=numbers[3])
    return row
