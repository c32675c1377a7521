"""Clients that leave and engines that die, on real engines behind a pdrelay of its own.

usage: failures.py PART...     env: BIN (folder of pdrelay), RT (logs), P_PORT=24010, D_PORT=24020, PROMPT=4000 (tokens), TIMES=20
     CASES='95 %,between' (of departures and first; one may be named again and again)   TAGS=p0 (whom `first` restarts: d0,p0)

departures  1P+1D: clients leave at shares of a long prefill, between P and D, in a stream: P's KV is free again at once, none expires
first       1P+1D: the same, each as the first request after D, then P, was restarted
strangers   2P+2D, just started: the same with pairs that have never met
deaths      1P+1D: D, then P, is killed and comes back
returns     1P+1D: D, then P, comes back ROUNDS=2 times: how long until it serves through pdrelay, and asked without it
pairs       2P+2D: one of each is killed and restarted under `vllm bench serve`; a D dies before its first byte
Departures go through forwarders before P and D, which know P's progress exactly. Standard library only.
"""

import atexit
import datetime
import json
import os
import pathlib
import re
import statistics
import subprocess
import sys
import threading
import time
import urllib.request

from forwarder import CHAT, COMPLETIONS, Client, Forwarder, chat, completion, expect, ids, metric, post, starved, until, wrong

HERE = pathlib.Path(__file__).parent
E = os.environ.get
RT = pathlib.Path(E("RT", "."))
PROMPT, TIMES = int(E("PROMPT", 4000)), int(E("TIMES", 20))
LEASE = 30 + 10  # vLLM's, and a margin
PREFILL = [f"http://127.0.0.1:{int(E('P_PORT', 24010)) + n}" for n in (0, 1)]
DECODE = [f"http://127.0.0.1:{int(E('D_PORT', 24020)) + n}" for n in (0, 1)]
P, D = PREFILL[0], DECODE[0]


class Relay:
    def __init__(self, prefill, decode, port, log):
        bare = [[url.removeprefix("http://") for url in urls] for urls in (prefill, decode)]
        self.url = f"http://127.0.0.1:{port}"
        self.log = RT / log
        self.process = subprocess.Popen(
            [f"{os.environ['BIN']}/pdrelay", "serve", "--host", "127.0.0.1", "--port", str(port), "--handshake", "nixl",
             "--prefill", *bare[0], "--decode", *bare[1]], stdout=self.log.open("w"), stderr=subprocess.STDOUT)
        # One that is left behind keeps the port: the next run's cannot start, and the old one is asked in its place.
        atexit.register(self.process.kill)
        if until(10, self.healthy) is None:
            sys.exit(self.log.read_text())

    def healthy(self):
        return healthy(self.url)

    def access(self):
        """The access lines as (status, P, D, retries, end, line)."""
        found = []
        for line in self.log.read_text().splitlines():
            if " info access " in line:
                got = dict(re.findall(r" (\w+)=(\S+)", line))
                found.append((int(re.search(r'" (\d+) ', line)[1]), got.get("prefill"), got.get("decode"), int(got["retries"]), got["end"], line))
        return found

    def stop(self):
        self.process.terminate()
        self.process.wait()


def healthy(base):
    try:
        return urllib.request.urlopen(base + "/health", timeout=2).status == 200
    except OSError:
        return False


def engines_do(*words):
    subprocess.run([HERE / "engines.sh", *words], check=True, stdout=subprocess.DEVNULL)


def restart(tag, base):
    """Starts a killed engine; gives the moment of its first good /health. The rest of `engines.sh up` follows that."""
    process = subprocess.Popen([HERE / "engines.sh", "up", tag], stdout=subprocess.DEVNULL)
    while not healthy(base):
        if process.poll():
            sys.exit(f"{tag} did not start")
        time.sleep(0.05)
    return time.time(), process


# --- KV at P ----------------------------------------------------------------------------------------------------------


def nudge(base):
    """An engine publishes its numbers only while it has something to do."""
    post(base, COMPLETIONS, {"model": completion()["model"], "prompt": [5, 6], "max_tokens": 1})


def expired():
    return int(metric(P, "vllm:nixl_num_kv_expired_reqs(?:_total)?"))


def usage():
    nudge(P)
    time.sleep(0.03)
    return metric(P, "vllm:kv_cache_usage_perc")


def busy(base):
    return metric(base, "vllm:num_requests_running") + metric(base, "vllm:num_requests_waiting")


def back_after(left, limit=45):
    """How long after `left` P's KV usage was back; None if never."""
    if until(limit, lambda: usage() == 0 and not busy(P)) is None:
        return None
    return starved.seconds(left, time.time())


def watch_leases(since):
    """Waits until no lease from before can be alive; gives by how much the expired ones grew."""
    end = time.time() + LEASE
    while time.time() < end:
        nudge(P)
        time.sleep(2)
    return expired() - since


# --- departures -------------------------------------------------------------------------------------------------------


class Departures:
    """One client at a time, who leaves at a known point of a prefill."""

    def __init__(self, port=24050):
        self.p, self.d = Forwarder(P), Forwarder(D)
        self.relay = Relay([self.p.url], [self.d.url], port, "relay-departures.log")
        self.prefill = 1.0

    def measure(self):
        post(self.relay.url, COMPLETIONS, completion())
        seen = []
        for _ in range(7):
            self.p.fresh()
            post(self.relay.url, COMPLETIONS, completion(prompt=ids(PROMPT), max_tokens=1))
            seen.append(self.took)
        self.prefill = statistics.median(seen)
        print(f"  a prompt of {PROMPT} tokens: P answers after {self.prefill:.3f} s (median of {len(seen)}, {min(seen):.3f} to {max(seen):.3f} s)")

    @property
    def took(self):
        return self.p.answered_at - self.p.asked_at

    def fresh(self):
        self.p.fresh()
        self.d.fresh()

    def after_p(self, left, back):
        """The part of `back` that was not P's own work: a busy machine may stop P for seconds."""
        answered = self.p.answered_at if self.p.answered.is_set() else left
        return back - max(0.0, answered - left)

    def leave(self, case, turn):
        """Sends a request and leaves at the point; gives when that was."""
        self.fresh()
        reset = turn % 2 == 1
        whole = turn % 4 >= 2  # no stream: D's head would come only with its last token
        left = []

        def go():
            left.append(time.time())
            client.leave(reset)

        at_answer = case == "100 %" and turn % 2 == 0
        if at_answer:
            ready = threading.Event()
            self.p.on_answer = lambda: ready.wait(5) and go()
        if case == "between":
            if turn % 2:
                self.d.hold_answer = 0.3
            else:
                self.d.hold_request = 0.3
            reset = turn % 4 >= 2
        client = Client(self.relay.url, COMPLETIONS, completion(prompt=ids(PROMPT), max_tokens=64, stream=not whole))
        if at_answer:
            ready.set()
            self.p.answered.wait(60)
        elif case == "between":
            self.d.asked.wait(60)
            (self.d.answered if turn % 2 and not whole else threading.Event()).wait(0.1)
            go()
        elif case == "stream":
            client.socket.settimeout(60)
            client.more()
            go()
        else:
            self.p.asked.wait(60)
            share = int(case.split()[0]) / 100
            # In the very moment of P's answer the odd ones leave, spread over some ms before and after it.
            spread = (turn // 2 % 10 - 6) * 0.002 if share == 1 else 0
            time.sleep(max(0, self.p.asked_at + share * self.prefill + spread - time.time()))
            go()
        return left[0]

    def stop(self):
        self.relay.stop()


CASES = ["30 %", "80 %", "95 %", "100 %", "between", "stream"]
SAID = {"between": "between P and D", "stream": "in a stream"}


def said(case):
    return SAID.get(case, f"at {case} of prefill")


def departures():
    it = Departures()
    it.measure()
    until(LEASE, lambda: usage() == 0)
    for case in E("CASES", ",".join(CASES)).split(","):
        before, took, after_p = expired(), [], []
        for turn in range(TIMES):
            left = it.leave(case, turn)
            back = back_after(left)
            took.append(back or 99)
            after_p.append(it.after_p(left, took[-1]))
        grown = watch_leases(before)
        expect(f"{TIMES} clients left {said(case)}", grown == 0 and max(after_p) <= 2,
               f"expired {grown}, P's KV back after {statistics.median(took):.2f} s (median), {max(took):.2f} s at most; "
               f"of which after P's work was over {statistics.median(after_p):.2f} s, {max(after_p):.2f} s at most")
    before, left = expired(), []
    many = [Client(it.relay.url, CHAT, chat(max_tokens=3000, stream=True)) for _ in range(12)]
    for client in many[::2]:
        client.read(3)
    for client in many:
        client.leave()
    took = back_after(time.time())
    expect("twelve left at once", took is not None and took <= 2, f"back after {took}")
    it.stop()


def first():
    it = Departures()
    it.measure()
    cases = E("CASES", ",".join(CASES[:5])).split(",")
    for tag, base, forwarder in (("d0", D, it.d), ("p0", P, it.p)):
        if tag not in E("TAGS", "d0,p0").split(","):
            continue
        for turn, case in enumerate(cases):
            first_after_restart(it, tag, base, forwarder, turn, case)
    it.stop()


def first_after_restart(it, tag, base, forwarder, turn, case):
    if until(LEASE, lambda: usage() == 0) is None:
        expect("P holds no KV before", False)
    engines_do("crash", tag)
    forwarder.down()
    restart(tag, base)[1].wait()
    forwarder.up()
    if until(10, lambda: ready(it.relay.url)) is None:
        expect(f"{tag} is back", False)
    before = expired()
    left = it.leave(case, turn)
    took = back_after(left) or 99
    after_p = it.after_p(left, took)
    grown = watch_leases(before)
    expect(f"the first client after a restart of {tag} left {said(case)}", grown == 0 and after_p <= 2,
           f"expired {grown}, P's KV back after {took:.2f} s, of which after P's work was over {after_p:.2f} s")


def strangers():
    """As `first`, without restarts: 2P+2D that have just been started are four pairs that have never met."""
    global P, D
    before, seen = {}, []
    for turn, (case, P, D) in enumerate(zip(CASES[1:5], PREFILL + PREFILL, DECODE + DECODE[::-1])):
        it = Departures()
        nudge(D)
        nudge(P)
        before.setdefault(P, expired())
        it.prefill = float(E("PREFILL_SECONDS", 0.35))  # to measure it would make them meet
        left = it.leave(case, turn)
        took = back_after(left) or 99
        seen.append((case, took, it.after_p(left, took)))
        it.stop()
    end = time.time() + LEASE
    while time.time() < end:
        for url in PREFILL:
            nudge(url)
        time.sleep(1)
    grown = 0
    for P, was in before.items():
        grown += expired() - was
    for case, took, after_p in seen:
        expect(f"the first client of a P and a D that never met left {said(case)}", grown == 0 and after_p <= 2,
               f"expired {grown} (all four), P's KV back after {took:.2f} s, of which after P's work was over {after_p:.2f} s")


def ready(url):
    try:
        return urllib.request.urlopen(url + "/ready", timeout=2).status == 200
    except OSError:
        return False


# --- deaths -----------------------------------------------------------------------------------------------------------


def error_of(data):
    try:
        return json.loads(data).get("error") or {}
    except ValueError:
        return {}


def fails_well(relay, name, wanted):
    began = time.time()
    status, data = post(relay, COMPLETIONS, completion())
    took = time.time() - began
    expect(name, status == wanted and bool(error_of(data).get("message")) and took < 1, f"{status} after {took:.3f} s, {data[:200].decode()}")


def dies_before_a_byte(relay, kill):
    """A whole answer is under way on D; kills; gives what the client got."""
    client = Client(relay, COMPLETIONS, completion(max_tokens=3000))
    until(5, lambda: any(busy(base) for base in DECODE if healthy(base)))
    time.sleep(0.2)
    kill()
    client.rest()
    return client.seen


def deaths():
    relay = Relay([P], [D], 24051, "relay-deaths.log")
    post(relay.url, COMPLETIONS, completion())
    stream = Client(relay.url, CHAT, chat(max_tokens=3500, stream=True)).read(5)
    seen = dies_before_a_byte(relay.url, lambda: engines_do("crash", "d0"))
    broken, last = stream.rest(), stream.seen.strip().split(b"data: ")[-1]
    expect("D killed in a stream: an error event, and the connection broken", broken and b'"error"' in last, last[:160].decode())
    expect("the only D killed before its first byte: 502", seen.startswith(b"HTTP/1.1 502"), seen[-200:].decode())
    fails_well(relay.url, "without D: 502 JSON within 1 s", 502)
    serves_again(relay, "d0", D, 2)

    stream = Client(relay.url, CHAT, chat(max_tokens=1500, stream=True)).read(5)
    engines_do("crash", "p0")
    killed = time.time()
    fails_well(relay.url, "P killed: 503 JSON within 1 s", 503)
    fails_well(relay.url, "and again", 503)
    ran_on = not stream.seen.endswith(b"0\r\n\r\n")
    broken = stream.rest()
    expect("P killed: the running stream finishes", ran_on and not broken and b"[DONE]" in stream.seen and b'"error":' not in stream.seen,
           f"{stream.seen.count(b'data: ')} events, the last {time.time() - killed:.2f} s after the kill")
    serves_again(relay, "p0", P, 1)
    relay.stop()


# --- pairs ------------------------------------------------------------------------------------------------------------


def bench(relay, more, done):
    """`vllm bench serve` again and again until nobody needs it any more; gives its counts of good and failed requests."""
    env = {**os.environ, "N": E("N", "400"), "CONC": "8", "IN": E("IN", "64"), "OUT": E("OUT", "64")}
    while not more.is_set():
        run = subprocess.run([HERE / "bench-serve.sh", relay.url], env=env, capture_output=True, text=True)
        counts = re.search(r"(\d+) ok, (\d+) failed.*", run.stdout)
        print("  " + (counts[0] if counts else run.stdout[-2000:] + run.stderr[-2000:]), flush=True)
        done.append((int(counts[1]), int(counts[2])) if counts else (0, 10**6))


def pairs():
    """d0, then p0, is killed under load; both are restarted, under load."""
    relay = Relay(PREFILL, DECODE, 24052, "relay-pairs.log")
    for _ in range(8):
        post(relay.url, COMPLETIONS, completion())
    enough, counts = threading.Event(), []
    load = threading.Thread(target=bench, args=(relay, enough, counts))
    load.start()
    until(120, lambda: len(relay.access()) > 60)
    # Whole answers: no byte of theirs has come when d0 dies. Some are on it.
    whole = [Client(relay.url, COMPLETIONS, completion(max_tokens=600)) for _ in range(4)]
    until(10, lambda: sum(busy(base) for base in DECODE) >= 8)
    time.sleep(0.5)
    engines_do("crash", "d0")
    time.sleep(5)
    engines_do("crash", "p0")
    for client in whole:
        client.rest()
    good = sum(client.seen.startswith(b"HTTP/1.1 200") and client.seen.endswith(b"}") for client in whole)
    again = sum(line[3] > 0 and line[4] == "ok" for line in relay.access())
    expect("d0 killed before its first byte: another D answers", good == len(whole) and again > 0,
           f"{good} of {len(whole)} whole answers came, {again} requests were tried again and answered")
    back = [threading.Thread(target=serves_again, args=(relay, *which, (), True)) for which in (("d0", DECODE[0], 2), ("p0", PREFILL[0], 1))]
    for one in back:
        one.start()
    for one in back:
        one.join()
    time.sleep(5)
    enough.set()
    load.join()
    failed = [line for line in relay.access() if line[4] != "ok"]
    at = DECODE[0].removeprefix("http://")
    stray = [line[5] for line in failed if not (line[0] == 200 and line[2] == at)]
    told = sum(count for _, count in counts)
    expect("failures only among streams that had begun on the killed D", not stray and len(failed) <= 8 and told == len(failed),
           f"{sum(good for good, _ in counts)} good and {told} failed by the client's count, {len(failed)} by the relay's, {len(stray)} of them elsewhere")
    for line in stray[:5]:
        print("      " + line)
    relay.stop()


def serves_again(relay, tag, base, role, through=(), loaded=False):
    """Restarts; the engine must be given a request and answer it within 2 s of its /health. Forwarders before P
    and D, if any, tell how much of that was the engines' own. Under load it must be given one that it answers: how long
    eight streams at four engines take on the cores of one machine is nobody's promise."""
    forwarder = through[role - 1] if through else None
    name = (forwarder.url if through else base).removeprefix("http://")
    before = len(relay.access())
    health, process = restart(tag, base)
    if forwarder:
        forwarder.up()

    def served():
        post(relay.url, COMPLETIONS, completion())
        lines = relay.access()[before:]
        # Lines come late, also of what had begun before the kill.
        return [line for line in lines if line[role] == name and line[0] == 200 and line[4] == "ok" and began(line[5]) > health - 5]

    until(30, served)
    first = (served() or [None])[0]
    process.wait()
    seconds = starved.seconds(health, ended(first[5])) if first else 99
    given = began(first[5]) + (prefilled(first[5]) if role == 2 else 0) if first else health + 99
    spans = first and " ".join(re.findall(r"(?:prefill|decode_head|total)_ms=\S+", first[5]))
    refused = sum(line[0] != 200 and ended(line[5]) > health for line in relay.access()[before:])
    told = f"after {seconds:.2f} s, {refused} refused before; the first: {spans}"
    if first and through:
        own = [sum(out - into for into, out in one.spans if began(first[5]) <= into and out <= ended(first[5]) + 0.002) for one in through]
        rest = ended(first[5]) - began(first[5]) - sum(own)
        told += f"; by forwarders, P took {own[0]:.3f} s and D {own[1]:.3f} s of it; the rest, {rest:.3f} s, is pdrelay's and the forwarders'"
    if loaded:
        given = starved.seconds(health, given)
        expect(f"{tag} restarted: is given what it serves within 2 s of its /health", given <= 2, f"after {given:.2f} s, all of it was there {told}")
    else:
        expect(f"{tag} restarted: serves again within 2 s of its /health", seconds <= 2, told)


def began(line):
    """When the request of an access line came."""
    return datetime.datetime.fromisoformat(line.split(" ", 1)[0].replace("Z", "+00:00")).timestamp()


def ended(line):
    """When it was answered."""
    return began(line) + float(re.search(r" total_ms=(\S+)", line)[1]) / 1000


def prefilled(line):
    """How long it was with P."""
    return float(re.search(r" prefill_ms=(\S+)", line)[1]) / 1000


def by_hand():
    """A hand-over from P to D without pdrelay; gives how long P and D took."""
    nobody = dict.fromkeys(("remote_engine_id", "remote_block_ids", "remote_host", "remote_port"))
    asked, began = completion(), time.time()
    status, data = post(P, COMPLETIONS, {**asked, "max_tokens": 1, "kv_transfer_params": {"do_remote_decode": True, "do_remote_prefill": False, **nobody}})
    prefilled = time.time()
    status, data = post(D, COMPLETIONS, {**asked, "kv_transfer_params": json.loads(data)["kv_transfer_params"]})
    if status != 200:
        sys.exit(f"by hand: {status} {data[:300]!r}")
    return prefilled - began, time.time() - prefilled


def returns():
    """As the end of `deaths`, next to the same hand-over without pdrelay: what of it is the engine's own."""
    through = Forwarder(P), Forwarder(D)
    relay = Relay([through[0].url], [through[1].url], 24053, "relay-returns.log")
    post(relay.url, COMPLETIONS, completion())
    for tag, base, role in (("d0", D, 2), ("p0", P, 1)):
        for _ in range(int(E("ROUNDS", 2))):
            engines_do("crash", tag)
            health, process = restart(tag, base)
            p, d = by_hand()
            print(f"  {tag} restarted, asked without pdrelay: {time.time() - health:.2f} s after its /health; P {p:.2f} s, D {d:.2f} s", flush=True)
            process.wait()
            print("  and again: P {:.2f} s, D {:.2f} s".format(*by_hand()), flush=True)
            engines_do("crash", tag)
            through[role - 1].down()
            post(relay.url, COMPLETIONS, completion())
            serves_again(relay, tag, base, role, through)
    relay.stop()


for part in sys.argv[1:]:
    {"departures": departures, "first": first, "strangers": strangers, "deaths": deaths, "returns": returns, "pairs": pairs}[part]()
print(f"  {', '.join(sys.argv[1:])}: {'all as it should be' if not wrong else 'WRONG: ' + '; '.join(wrong)}")
sys.exit(bool(wrong))
