"""The loads, and one measurement: pdload against one proxy, for a window at whose very ends the proxy's CPU time is read.

A group is a setting of the engines; a cell is a load within it."""

import json
import subprocess
import time
from dataclasses import dataclass, field

from . import machine, usage
from .engine import MODEL
from .run import Process

KB, MB = 1 << 10, 1 << 20


@dataclass
class Cell:
    name: str
    unit: str  # what the CPU time is divided by: request or chunk
    concurrency: int
    flags: list
    # Seconds of warm-up and of the window, in units of --seconds.
    warmup: float = 0.25
    window: float = 1.0
    # Are slow proxies asked, too?
    for_slow: bool = False
    quick: bool = False
    # Is pdrelay asked with two shards, too, and are nginx and HAProxy twice in a row?
    two_shards: bool = False
    twice: bool = False
    peak: bool = False


@dataclass
class Group:
    name: str
    engines: list = field(default_factory=list)
    cells: list = field(default_factory=list)


def whole(size, *more):
    return ["--no-stream", "--max-tokens", 16, "--prompt-bytes", size, *more]


def stream(tokens, *more):
    return ["--stream", "--max-tokens", tokens, "--prompt-bytes", KB, *more]


def asked(cell, peer):
    """Is this peer measured under this load?"""
    if peer.slow:
        return cell.for_slow
    if peer.shards > 1:
        return cell.two_shards
    return cell.twice or peer.stages or peer.hops < 2


def groups():
    image = ["--endpoint", "chat", "--image-bytes", 3 * MB]
    instant = [
        Cell("1 KB, c=1", "request", 1, whole(KB)),
        Cell("1 KB, c=64", "request", 64, whole(KB), for_slow=True, quick=True, two_shards=True, twice=True),
        Cell("1 KB, c=512", "request", 512, whole(KB), for_slow=True, two_shards=True, twice=True),
        Cell("1 KB, c=2000", "request", 2000, whole(KB), warmup=0.6),
        Cell("100 KB, c=64", "request", 64, whole(100 * KB)),
        Cell("4 MB text, c=4", "request", 4, whole(4 * MB), peak=True),
        Cell("4 MB image, c=4", "request", 4, whole(KB, *image), peak=True),
        Cell("first token, 1 KB, c=2000", "request", 2000, stream(2), warmup=0.6),
    ]

    def streams(tick, *loads):
        """Lockstep, then staggered: (name, streams, tokens per answer, more of the cell) each."""
        found = []
        for phase, flag in (("lockstep", []), ("staggered", ["--stagger"])):
            cells = [Cell(f"{name}, {phase}", "chunk", count, stream(tokens), **more) for name, count, tokens, more in loads]
            if flag:
                for cell in cells:
                    cell.quick = cell.for_slow = False
            found.append(Group(f"{tick} ms, {phase}", ["--decode-tick-ms", tick, *flag], cells))
        return found

    # Of 16 chunks, too: there a request's own cost is part of a chunk's.
    five = streams(5, ("64 streams at 5 ms", 64, 64, {"for_slow": True, "quick": True}), ("64 streams of 16 chunks at 5 ms", 64, 16, {}))
    fifty = streams(50, ("1000 streams at 50 ms", 1000, 32, {"warmup": 1.5, "window": 2.5}))
    return [Group("instant", [], instant), *five, *fifty]


def measure(lab, peer, cell, seconds):
    """One pdload against one proxy; again if the machine was paused meanwhile."""
    for _ in range(3):
        row = measure_once(lab, peer, cell, seconds)
        if row.pop("stood_still") < 0.5:
            break
    return row


def measure_once(lab, peer, cell, seconds):
    command = [lab.bin / "pdload", "--url", f"http://127.0.0.1:{peer.port}", "--model", MODEL, "-c", cell.concurrency]
    command += ["-s", seconds * cell.window, "--warmup-s", seconds * cell.warmup, "--drain-s", 5, "--timeout-s", 30]
    command += ["--json", "-", "--allow-errors", *cell.flags]
    for pid in peer.pids:
        command += ["--pid", pid]
    if peer.pids:
        command.append("--pid-tree")
    if cell.peak:
        rest = peer.rss_kib()
        usage.forget_peak(peer.pids)
    before, began = machine.cpu_times(), time.monotonic()
    load = Process(lab, "load", command, lab.load_cpus)
    try:
        load.child.wait(seconds * (cell.window + cell.warmup) + 60)
    except subprocess.TimeoutExpired:
        load.kill()
    after = machine.cpu_times()
    still = machine.stood_still(before, after, time.monotonic() - began)
    try:
        report = json.loads(load.text())
    except ValueError:
        return {"error": f"pdload measured nothing: {load.errors()[-300:]}", "steal": 0.0, "stood_still": still}
    row = figures(report, cell)
    row |= {"steal": machine.between(before, after)["steal"], "stood_still": still}
    if cell.peak:
        row["peak_over_rest_mb_per_request"] = (usage.kib(peer.pids, "VmHWM") - rest) / 1024 / cell.concurrency
    return row


def figures(report, cell):
    errors, asked, cpu = report["errors"], report["requests"], report["cpu"]
    row = {
        "ok": asked["ok"],
        "failed": asked["failed"] + asked["unfinished"],
        "requests_per_s": report["throughput"]["requests_per_s"],
        "chunks_per_s": report["throughput"]["chunks_per_s"],
        "load_busy": max((thread["busy"] for thread in report["load_threads"]), default=0.0),
    }
    if errors["total"]:
        row["error"] = f"{errors['total']} errors: {errors['by_kind']} {errors['samples'][:1]}"
    elif not asked["ok"] and not report["window"]["counts"]["requests"]:
        row["error"] = "no answer in the window"
    if cpu:
        per = "us_per_request" if cell.unit == "request" else "us_per_chunk"
        row["cpu_us"], row["cores"] = cpu[per], cpu["cores"]
        row["waited_share"] = cpu["used"]["waited_ns"] / 1e9 / report["window"]["seconds"]
    for name in ("ttft", "itl", "e2e"):
        summary = report["latency"][name]
        if summary["count"]:
            row[name] = {part.replace(".", ""): summary[f"{part}_us"] for part in ("p50", "p99", "p99.9")}
    return row


def idle(lab, peer, streams):
    """Resident memory per stream that has been answered and waits for a token."""
    rest = peer.rss_kib()
    rate = 800 if not peer.slow else 40
    ramp = streams / rate
    command = [lab.bin / "pdload", "--url", f"http://127.0.0.1:{peer.port}", "--model", MODEL, *stream(64)]
    command += ["--rate", rate, "--arrivals", "constant", "-n", streams, "--max-in-flight", streams]
    command += ["--timeout-s", ramp + 120, "--warmup-s", 0, "--json", "-", "--allow-errors"]
    load = Process(lab, "idle", command, lab.load_cpus)
    end, held = time.monotonic() + ramp + 25, 0
    while time.monotonic() < end and load.alive():
        time.sleep(0.5)
        held = established(peer.port)
        if held >= streams:
            break
    time.sleep(2.0)
    held, full = established(peer.port), peer.rss_kib()
    load.kill()
    row = {"streams": held, "kib_per_stream": (full - rest) / max(held, 1), "rest_kib": rest}
    if held < streams * 0.98:
        row["error"] = f"only {held} of {streams} streams are open: {load.text()[-200:]}{load.errors()[-200:]}"
    return row


def established(port):
    """Connections that this port's server has, from /proc/net/tcp."""
    wanted, count = f":{port:04X}", 0
    with open("/proc/net/tcp") as table:
        for line in table:
            fields = line.split()
            if len(fields) > 3 and fields[1].endswith(wanted) and fields[3] == "01":
                count += 1
    return count
