#!/usr/bin/env python3
"""What a silent stream costs: VmRSS of pdrelay before and with STREAMS streams that fell silent after a token.

  STREAMS=5000 BODY=1024 RATE=250 LIMIT_KIB=8 tools/endure/idle_streams.py

The simulator, another process, sends the first token and no more. Connections are opened at RATE per second: what
is measured is streams at rest, not how a small machine takes thousands of connections in one moment.
"""

import sys
import time

from lab import BASE, Lab, Result, metrics, number, panics

STREAMS, BODY, RATE = number("STREAMS", 5000), number("BODY", 1024), number("RATE", 250.0)
LIMIT_KIB = number("LIMIT_KIB", 8.0)
PREFILL, DECODE, RELAY = BASE, BASE + 1, BASE + 20


def run(lab):
    # Two descriptors per stream in pdrelay.
    if lab.files < 2 * STREAMS + 1000:
        sys.exit(f"{lab.files} descriptors are too few for {STREAMS} streams (ulimit -n)")
    simulator = lab.simulator("simulator", "--prefill", 1, "--decode", 1, "--port-base", BASE)
    relay = lab.relay(RELAY, "--handshake", "nixl", "--prefill", f"127.0.0.1:{PREFILL}", "--decode",
                      f"127.0.0.1:{DECODE}", "--log-level", "warning")
    body = ["--prompt-bytes", BODY]
    # One request first: what is set up once belongs to no stream.
    Result(lab.load("first", RELAY, "-n", 1, *body), 30)
    time.sleep(1)
    empty = memory(relay)
    ramp = STREAMS / RATE
    hold = ramp + 30
    load = lab.load("idle", RELAY, "-H", "x-sim-fault-decode: stall:1", "--stream", "--rate", RATE, "--arrivals",
                    "constant", "-n", STREAMS, "--max-in-flight", STREAMS, "--timeout-s", hold, *body)
    points = []
    end = time.monotonic() + ramp + 20
    while time.monotonic() < end:
        seen = metrics(RELAY)
        open_now = int(seen["pdrelay_instance_in_flight"])
        points.append((open_now, memory(relay)[0]))
        if open_now >= STREAMS and int(seen["pdrelay_upstream_connects_total"]) >= STREAMS:
            break
        time.sleep(1)
    # At rest: no chunk moves, and what the last of them needed has been given back.
    time.sleep(3)
    seen = metrics(RELAY)
    silent = int(seen["pdrelay_instance_in_flight"])
    full = memory(relay)
    grown = full[0] - empty[0]
    per = grown / max(silent, 1)
    print(f"VmRSS    {empty[0]} KiB before, {full[0]} KiB with {silent} streams: {grown} KiB more (anonymous {full[1] - empty[1]}, "
          f"of it huge pages {full[2] - empty[2]})")
    middle = min(points, key=lambda point: abs(point[0] - STREAMS / 2))
    if silent > middle[0]:
        print(f"         from stream {middle[0]} on: {(full[0] - middle[1]) / (silent - middle[0]):.2f} KiB each")
    lab.check(silent == STREAMS and seen["pdrelay_requests_in_flight"] == STREAMS + 1,
              f"{silent} of {STREAMS} streams open and silent, bodies of {BODY} bytes")
    lab.check(per <= LIMIT_KIB, f"{per:.2f} KiB of VmRSS per stream, at most {LIMIT_KIB:g}")
    load.kill()
    for _ in range(40):
        time.sleep(0.5)
        seen = metrics(RELAY)
        if seen["pdrelay_instance_in_flight"] == 0:
            break
    lab.check(seen["pdrelay_requests_in_flight"] == 1 and seen["pdrelay_instance_in_flight"] == 0,
              f"all gone when the clients left; VmRSS {memory(relay)[0]} KiB")
    lab.check(relay.alive() and not panics(relay), "pdrelay runs on, without a panic")
    relay.stop()
    simulator.stop()


def memory(relay):
    """VmRSS, its anonymous part, and huge pages among that, in KiB."""
    rss, anonymous = relay.status("VmRSS", "RssAnon")
    with open(f"/proc/{relay.pid}/smaps_rollup") as rollup:
        huge = next((int(line.split()[1]) for line in rollup if line.startswith("AnonHugePages")), 0)
    return rss, anonymous, huge


if __name__ == "__main__":
    with Lab() as lab:
        run(lab)
        sys.exit(lab.verdict())
