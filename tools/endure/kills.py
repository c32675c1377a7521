#!/usr/bin/env python3
"""One of two decode engines is killed (SIGKILL) and started again every few seconds, under load.

  SECONDS=120 EVERY=5 DOWN=2 RATE=200 tools/endure/kills.py

Half of the requests are streams. A stream that was cut in its middle is what a death may do; an error on a
request whose client had not seen a byte is not. The two engines are killed in turn, which is harder than the
same one each time: the other must be trusted again by then.
"""

import sys
import time

from lab import BASE, Lab, Result, ledger, metrics, number, panics

SECONDS, EVERY, DOWN = number("SECONDS", 120.0), number("EVERY", 5.0), number("DOWN", 2.0)
RATE = number("RATE", 200.0)
PREFILL, DECODE, RELAY = BASE, [BASE + 1, BASE + 2], BASE + 20


def run(lab):
    prefill = lab.engine("prefill", PREFILL)
    decode = [lab.engine("decode", port, "--decode-tick-ms", 5) for port in DECODE]
    addresses = [f"127.0.0.1:{port}" for port in DECODE]
    relay = lab.relay(RELAY, "--handshake", "nixl", "--prefill", f"127.0.0.1:{PREFILL}",
                      "--decode", *addresses, "--log-level", "warning")
    shared = ["--rate", RATE / 4, "-s", SECONDS, "--timeout-s", 30, "--prompts", 64, "--verify-stable"]
    kinds = {"chat": ["--endpoint", "chat"], "text": []}
    forms = {"stream": "--stream", "json": "--no-stream"}
    loads = {f"{form}-{kind}": lab.load(f"{form}-{kind}", RELAY, flag, *shared, *more)
             for kind, more in kinds.items() for form, flag in forms.items()}
    begin = time.monotonic()
    kills = 0
    while (kills + 1) * EVERY < SECONDS:
        pause(begin + (kills + 1) * EVERY)
        victim = kills % 2
        decode[victim].kill()
        pause(begin + (kills + 1) * EVERY + DOWN)
        decode[victim] = decode[victim].again()
        kills += 1
    results = {name: Result(load, SECONDS + 60) for name, load in loads.items()}
    for name, result in results.items():
        result.line(name)
    seen = metrics(RELAY)
    retries = {name.split('"')[1]: int(value) for name, value in seen.items()
               if name.startswith("pdrelay_retries_total{") and value}
    print(f"pdrelay  retries {retries}, ejections {seen['pdrelay_ejections_total']:.0f}")
    lab.check(relay.alive() and not panics(relay), "pdrelay runs on, without a panic")
    relay.stop()
    prefill.stop()
    total = sum(result.total for result in results.values())
    wrong = sum(result.uncommitted for result in results.values())
    cut = sum(result.cut for name, result in results.items() if name.startswith("stream"))
    whole = sum(result.cut for name, result in results.items() if name.startswith("json"))
    lab.check(total > 0.9 * RATE * SECONDS, f"{total} requests, {kills} kills")
    lab.check(wrong == 0, f"{wrong} errors on requests that were not committed")
    lab.check(whole == 0, f"{whole} JSON answers cut; {cut} streams cut in their middle (permitted)")
    # Only bytes already sent may be lost: a quarter second's worth of streams per death is the most there are.
    bound = kills * (RATE / 2) * 0.25
    lab.check(cut <= bound, f"{cut / max(kills, 1):.1f} streams cut per kill, at most {bound / max(kills, 1):.1f}")
    prefills = ledger(prefill.text()).get("grants", 0)
    ratio = prefills / max(total, 1)
    lab.check(0 < ratio <= 1.1, f"{prefills} prefills: {ratio:.4f} per request, at most 1.1")


def pause(until):
    time.sleep(max(0.0, until - time.monotonic()))


if __name__ == "__main__":
    with Lab() as lab:
        run(lab)
        sys.exit(lab.verdict())
