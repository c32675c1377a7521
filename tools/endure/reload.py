#!/usr/bin/env python3
"""The list of engines changes under load, by the configuration file and by the admin API, both at once.

  TIMES=20 RATE=200 tools/endure/reload.py

TIMES changes of the file (each other one announced by SIGHUP, the rest found by pdrelay itself; a broken file
in between changes nothing), and TIMES rounds of add, drain, resume, drain, remove. Nothing may fail: not one
request, and no hand-over (the simulator holds every grant against the rules).
"""

import os
import signal
import sys
import threading
import time

from lab import BASE, Lab, Result, ask, ledger, metrics, number, panics

TIMES, RATE = number("TIMES", 20), number("RATE", 200.0)
PREFILL, DECODE, RELAY = [BASE, BASE + 1], [BASE + 2, BASE + 3, BASE + 4, BASE + 5], BASE + 20
# The file is about the first engines, the admin API about the last.
BY_HAND = DECODE[3]
STEP = 1.5


def file_of(turn):
    """What the file says in this turn: each has other engines, weights and limits than the one before."""
    prefill = PREFILL[:1 + turn % 2]
    decode = [DECODE[:2], DECODE[:3], DECODE[1:3]][turn % 3]
    lines = ["handshake: nixl", "log_level: warning", "prefill:"]
    lines += [f"  - 127.0.0.1:{port}" for port in prefill]
    lines += ["decode:"]
    lines += [f"  - {{address: '127.0.0.1:{port}', weight: {1 + turn % 2}.0}}" for port in decode]
    lines += [f"timeouts: {{between_chunks: {200 + turn}s}}", ""]
    return "\n".join(lines)


def write(path, text):
    # As a configuration mount does it: never half a file.
    new = path.with_suffix(".new")
    new.write_text(text)
    os.replace(new, path)


def reloads(relay):
    text = relay.errors()
    return text.count("reload: done"), text.count("reload: refused")


def change_files(lab, relay, path):
    """How many turns were taken in, and how many broken files were refused."""
    taken = refused = 0
    for turn in range(1, TIMES + 1):
        if turn % 5 == 0:
            before = reloads(relay)
            write(path, "prefill: [127.0.0.1:1]\ndecode: nonsense: [\n")
            refused += wait_for(lambda: reloads(relay)[1] > before[1]) and reloads(relay)[0] == before[0]
        before = reloads(relay)
        write(path, file_of(turn))
        if turn % 2:
            os.kill(relay.pid, signal.SIGHUP)
        taken += wait_for(lambda: reloads(relay)[0] > before[0])
        time.sleep(STEP)
    return taken, refused


def both_ways(relay, path):
    """An engine is added by hand first and written into the file then, with another taken out of it."""
    body = {"role": "decode", "address": f"127.0.0.1:{BY_HAND}"}
    added = ask(RELAY, "POST", "/admin/instances", body)[0] == 200
    before = reloads(relay)
    write(path, f"handshake: nixl\nlog_level: warning\nprefill: ['127.0.0.1:{PREFILL[0]}']\n"
          f"decode: ['127.0.0.1:{DECODE[1]}', '127.0.0.1:{BY_HAND}']\n")
    wait_for(lambda: reloads(relay) != before)
    taken = reloads(relay) == (before[0] + 1, before[1])
    drained = [name for name, value in metrics(RELAY).items() if value and name.startswith("pdrelay_instance_draining{")]
    return added, taken, drained


def wait_for(true, seconds=5):
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


def change_by_hand():
    """The statuses of all calls, and rounds after which the drained engine had come to rest."""
    statuses, rested = [], 0
    body = {"role": "decode", "address": f"127.0.0.1:{BY_HAND}"}
    busy = f'pdrelay_instance_in_flight{{role="decode",instance="127.0.0.1:{BY_HAND}"}}'
    for _ in range(TIMES):
        statuses.append(ask(RELAY, "POST", "/admin/instances", body)[0])
        time.sleep(STEP / 4)
        statuses.append(ask(RELAY, "POST", "/admin/instances/drain", body)[0])
        time.sleep(STEP / 4)
        rested += metrics(RELAY).get(busy) == 0
        statuses.append(ask(RELAY, "POST", "/admin/instances/resume", body)[0])
        time.sleep(STEP / 4)
        statuses.append(ask(RELAY, "POST", "/admin/instances/drain", body)[0])
        # Removed with requests still on it: they run to their end.
        statuses.append(ask(RELAY, "DELETE", "/admin/instances", body)[0])
        time.sleep(STEP / 4)
    return statuses, rested


def run(lab):
    simulator = lab.simulator("simulator", "--prefill", len(PREFILL), "--decode", len(DECODE), "--port-base", BASE,
                              "--decode-tick-ms", 5)
    path = lab.folder / "pdrelay.yaml"
    write(path, file_of(0))
    relay = lab.relay(RELAY, "--config", path)
    seconds = TIMES * (STEP + 1.2) + 10
    # Slow prefills, so that many requests are between their two engines when the list changes.
    shared = ["--rate", RATE / 2, "-s", seconds, "--timeout-s", 30, "--prompts", 64, "--verify-stable",
              "-H", "x-sim-fault-prefill: slow-head:50"]
    loads = {"stream": lab.load("stream", RELAY, "--stream", *shared),
             "json": lab.load("json", RELAY, "--no-stream", "--endpoint", "chat", *shared)}
    time.sleep(1)
    hand = {}
    admin = threading.Thread(target=lambda: hand.update(zip(("statuses", "rested"), change_by_hand())))
    admin.start()
    taken, refused = change_files(lab, relay, path)
    admin.join()
    added, in_file, drained = both_ways(relay, path)
    results = {name: Result(load, seconds + 60) for name, load in loads.items()}
    for name, result in results.items():
        result.line(name)
    time.sleep(1)
    seen = metrics(RELAY)
    served = {name.split('instance="')[1][:-2]: int(value) for name, value in seen.items()
              if name.startswith("pdrelay_upstream_requests_total{")}
    print(f"pdrelay  {served}")
    statuses = hand.get("statuses", [])
    lab.check(taken == TIMES, f"{taken} of {TIMES} files taken in")
    lab.check(refused == TIMES // 5, f"{refused} of {TIMES // 5} broken files refused, with nothing changed")
    lab.check(statuses == [200] * (5 * TIMES), f"{statuses.count(200)} of {5 * TIMES} admin calls answered with 200")
    lab.check(hand.get("rested") == TIMES, f"{hand.get('rested')} of {TIMES} drained engines at rest within {STEP / 4:.2f} s")
    lab.check(added and in_file and not drained, f"an engine added by hand may appear in the file: taken in {in_file}, "
              f"left draining {drained}")
    total = sum(result.total for result in results.values())
    failed = sum(result.failed + result.unfinished for result in results.values())
    lab.check(failed == 0 and total > 0.9 * RATE * seconds, f"{failed} of {total} requests failed")
    lab.check(seen["pdrelay_requests_in_flight"] == 1 and seen["pdrelay_kv_releases_pending"] == 0,
              "nothing is left in flight (but the request that asks)")
    lab.check(relay.alive() and not panics(relay), "pdrelay runs on, without a panic")
    relay.stop()
    simulator.stop()
    book = ledger(simulator.text())
    wrong = {name: book.get(name) for name in ("reused", "malformed", "never-issued", "wrong-prompt", "violations")}
    lab.check(set(wrong.values()) == {0}, f"hand-overs: {book.get('grants')} grants, {book.get('fetched')} fetched, {wrong}")


if __name__ == "__main__":
    with Lab() as lab:
        run(lab)
        sys.exit(lab.verdict())
