#!/usr/bin/env python3
"""Ten minutes of everything at once; memory, descriptors and threads of pdrelay are noted every second.

  SECONDS=600 LOAD=1 [PLOT=docs/soak.svg] tools/endure/soak.py

Streams, JSON answers, large bodies and clients that leave in the middle; a decode or prefill engine dies every
20 s; the file is reloaded every 15 s; /metrics is read every 5 s. Flat means: the median of the last minute is
above that of the second by no more than LIMIT_KIB (2048) and LIMIT_FDS (10). The slope of a line fitted to all
after the first minute is printed with it.
"""

import os
import pathlib
import signal
import statistics
import sys
import time

from lab import BASE, ROOT, Lab, Result, ask, metrics, number, panics
from plot import Panel, draw

SECONDS, LOAD = number("SECONDS", 600.0), number("LOAD", 1)
LIMIT_KIB, LIMIT_FDS = number("LIMIT_KIB", 2048.0), number("LIMIT_FDS", 10.0)
# What the first minute does (pools fill, the allocator takes its memory) is no leak.
SETTLED = min(60.0, SECONDS / 3)
PREFILL, DECODE, RELAY = [BASE, BASE + 1], [BASE + 2, BASE + 3, BASE + 4], BASE + 20


def file_of(turn):
    decode = DECODE if turn % 2 else DECODE[:2]
    lines = ["handshake: nixl", "log_level: info", "prefill:"]
    lines += [f"  - 127.0.0.1:{port}" for port in PREFILL]
    lines += ["decode:"] + [f"  - 127.0.0.1:{port}" for port in decode]
    return "\n".join([*lines, f"timeouts: {{between_chunks: {200 + turn % 50}s}}", ""])


def loads(lab):
    # Closed loops: where the machine stands still for a moment, an open one would come back with a crowd, and
    # the plot would show the machine. The engines' 5 ms per token set the pace.
    shared = ["-s", SECONDS, "--prompts", 64]
    patient, hurried = ["--timeout-s", 30], ["--max-tokens", 64, "--timeout-s", 0.1]
    mix = {
        "stream": ["-c", 8 * LOAD, "--stream", "--endpoint", "chat", "--max-tokens", 32, *patient],
        "json": ["-c", 4 * LOAD, "--no-stream", *patient],
        "large": ["-c", LOAD, "--no-stream", "--prompt-bytes", 300_000, "--max-tokens", 64, *patient],
        # 64 tokens take 320 ms; these clients leave before.
        "leaving": ["-c", LOAD, "--stream", *hurried],
        "hasty": ["-c", LOAD, "--no-stream", *hurried],
    }
    return {name: lab.load(name, RELAY, *shared, *flags) for name, flags in mix.items()}


class Disturbance:
    """An engine that dies now and then, and files that change."""

    def __init__(self, lab, relay, engines, path):
        self.lab, self.relay, self.engines, self.path = lab, relay, engines, path
        self.kills = self.reloads = self.unread = 0
        self.slowest = 0.0
        self.down = None

    def at(self, second):
        if second % 20 == 10:
            # Only those that have a partner in each turn of the file.
            self.down = [2, 0, 3, 1][self.kills % 4]
            self.engines[self.down].kill()
            self.kills += 1
        elif second % 20 == 12 and self.down is not None:
            self.engines[self.down] = self.engines[self.down].again()
            self.down = None
        if second % 15 == 7:
            self.reloads += 1
            new = self.path.with_suffix(".new")
            new.write_text(file_of(self.reloads))
            os.replace(new, self.path)
            os.kill(self.relay.pid, signal.SIGHUP)
        if second % 5 == 0:
            begin = time.monotonic()
            try:
                ask(RELAY, "GET", "/metrics", timeout=30)
            except OSError:
                self.unread += 1
            self.slowest = max(self.slowest, time.monotonic() - begin)


def fitted(samples, column):
    """Per minute, by least squares over what came after the first one."""
    points = [(row[0], row[column]) for row in samples if row[0] >= SETTLED]
    n = len(points)
    mean_x, mean_y = (sum(p[i] for p in points) / n for i in (0, 1))
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    return 60 * sum((x - mean_x) * (y - mean_y) for x, y in points) / spread


def grown(samples, column):
    """Median of the last minute less that of the second. (Medians, since a stalled machine makes peaks.)"""
    end = SECONDS - 5
    first = [row[column] for row in samples if SETTLED <= row[0] < 2 * SETTLED]
    last = [row[column] for row in samples if end - SETTLED <= row[0] < end]
    return statistics.median(last) - statistics.median(first)


def watch(lab, relay, disturbance, running):
    samples = []
    begin = time.monotonic()
    second = 0
    while any(load.alive() for load in running.values()) and relay.alive():
        rss, threads = relay.status("VmRSS", "Threads")
        samples.append((time.monotonic() - begin, rss, relay.descriptors(), threads))
        if second < SECONDS - 5:
            disturbance.at(second)
        second += 1
        time.sleep(max(0.0, begin + second - time.monotonic()))
    return samples


def run(lab):
    engines = [lab.engine("prefill", port) for port in PREFILL]
    engines += [lab.engine("decode", port, "--decode-tick-ms", 5) for port in DECODE]
    path = lab.folder / "pdrelay.yaml"
    path.write_text(file_of(0))
    relay = lab.relay(RELAY, "--config", path)
    before = relay.descriptors()
    disturbance = Disturbance(lab, relay, engines, path)
    running = loads(lab)
    samples = watch(lab, relay, disturbance, running)
    results = {name: Result(load, 60) for name, load in running.items()}
    for name, result in results.items():
        result.line(name, samples=name not in ("leaving", "hasty"))
    lab.check(relay.alive() and not panics(relay), "pdrelay runs on, without a panic")
    # Idle connections to engines end 3 s after their last use.
    time.sleep(6)
    seen = metrics(RELAY)
    after = relay.descriptors()
    patient = [results[name] for name in ("stream", "json", "large")]
    wrong = sum(result.uncommitted for result in patient)
    lab.check(wrong == 0, f"{wrong} errors before a byte on {sum(r.total for r in patient)} requests of patient clients, "
              f"{sum(r.cut for r in patient)} cut by {disturbance.kills} deaths; {disturbance.reloads} reloads")
    gone = seen["pdrelay_client_gone_total"]
    lab.check(disturbance.unread == 0, f"{disturbance.unread} readings of /metrics failed, the slowest took "
              f"{disturbance.slowest:.2f} s")
    lab.check(gone > 0, f"{gone:.0f} clients left before their answer was whole")
    rest = (seen["pdrelay_requests_in_flight"] - 1, seen["pdrelay_kv_releases_pending"], seen["pdrelay_instance_in_flight"])
    lab.check(set(rest) == {0.0}, f"afterwards in flight {rest[0]:.0f}, releases pending {rest[1]:.0f}, held at engines {rest[2]:.0f}")
    lab.check(after <= before + 3, f"descriptors {before} before, {after} after")
    kib, fds = fitted(samples, 1), fitted(samples, 2)
    last = [row for row in samples if row[0] >= SETTLED]
    low, high = min(row[1] for row in last), max(row[1] for row in last)
    more = grown(samples, 1)
    lab.check(more <= LIMIT_KIB, f"VmRSS {low} to {high} KiB after {SETTLED:.0f} s: grown by {more:+.0f} KiB, at most "
              f"{LIMIT_KIB:.0f} (fitted {kib:+.1f} KiB/min)")
    more = grown(samples, 2)
    lab.check(more <= LIMIT_FDS, f"descriptors {min(row[2] for row in last)} to {max(row[2] for row in last)}: grown by "
              f"{more:+.0f}, at most {LIMIT_FDS:.0f} (fitted {fds:+.2f}/min)")
    threads = sorted({row[3] for row in last})
    lab.check(len(threads) == 1, f"threads {threads}")
    plot(samples, kib, fds)
    relay.stop()


def plot(samples, kib, fds):
    target = os.environ.get("PLOT")
    if not target:
        return
    seconds = [row[0] for row in samples]
    panels = [
        Panel("VmRSS, MiB", [row[1] / 1024 for row in samples], f"fitted {kib:+.1f} KiB/min after {SETTLED:.0f} s"),
        Panel("descriptors", [row[2] for row in samples], f"fitted {fds:+.2f}/min after {SETTLED:.0f} s"),
        Panel("threads", [row[3] for row in samples], ""),
    ]
    path = pathlib.Path(target)
    path = path if path.is_absolute() else ROOT / path
    path.write_text(draw(f"pdrelay over {seconds[-1] / 60:.0f} minutes of mixed load, one sample a second", seconds, panels))
    print(f"plot     {target}")


if __name__ == "__main__":
    with Lab() as lab:
        run(lab)
        sys.exit(lab.verdict())
