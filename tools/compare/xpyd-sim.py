#!/usr/bin/env python3
"""Real xpyd-sim nodes (0.5.0, from PyPI) behind `pdrelay xpyd`: 8 topologies from 1P1D to 2P16D.

usage: xpyd-sim.py [--pdrelay PATH] [--requests 10000] [--clients 8] [--only 2P16D]

The nodes are installed once into a throw-away virtual environment below $COMPARE (default: the user's cache
folder, pdrelay-compare). A quarter of the requests each are completions and chat, streamed and not, of 1 to 24
tokens. A request passes if its status is 200, its answer came to its end (a stream with one [DONE] as its last
event), its text is, word for word, that of a node asked directly, and the finish reason and usage are right.
Where requests go in turn, every node must have had some. Prints one line per topology; exit code 0: nothing
failed. Needs Python 3.10 or newer with venv, pip's registry within reach, and 3 GB of memory for 18 nodes.
"""

import argparse
import http.client
import json
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time

from originals import COMPARE, installed, pdrelay

MODEL = "sim"
TOKENS = 24
# name, prefill, decode, written as lists or as a topology, and the rest of the file
TOPOLOGIES = [
    ("1P1D", 1, 1, "lists", ""),
    ("1P2D", 1, 2, "lists", "scheduling: roundrobin\n"),
    ("2P1D", 2, 1, "topology", "scheduling: roundrobin\n"),
    ("2P2D", 2, 2, "lists", "first_token_source: prefill\n"),
    ("2P4D", 2, 4, "topology", "scheduling: power_of_two\n"),
    ("1P8D", 1, 8, "topology", "scheduling: consistent_hash\n"),
    ("2P8D", 2, 8, "instances", "scheduling: roundrobin\n"),
    ("2P16D", 2, 16, "topology", "scheduling: roundrobin\ngenerator_on_p_node: true\n"),
]


def free_ports(count):
    """So many in a row, for a topology counts up from a base."""
    dice = random.Random()
    while True:
        base, held = dice.randrange(20000, 30000), []
        try:
            for port in range(base, base + count):
                held.append(socket.create_server(("127.0.0.1", port)))
            return base
        except OSError:
            pass
        finally:
            for s in held:
                s.close()


class Nodes:
    """All nodes, for all topologies: their start takes seconds of CPU time each."""

    def __init__(self, prefill, decode):
        self.ports = {"prefill": free_ports(prefill)}
        self.ports["decode"] = free_ports(decode)
        self.processes, folder = [], COMPARE / "sim"
        folder.mkdir(parents=True, exist_ok=True)
        for mode, count in (("prefill", prefill), ("decode", decode)):
            for port in range(self.ports[mode], self.ports[mode] + count):
                command = [installed("sim") / "xpyd-sim", "serve", "--mode", mode, "--host", "127.0.0.1"]
                command += ["--port", str(port), "--model", MODEL, "--eos-min-ratio", "1.0", "--prefill-delay-ms", "1"]
                command += ["--kv-transfer-delay-ms", "1", "--decode-delay-per-token-ms", "1"]
                with open(folder / f"{mode}-{port}.log", "w") as log:
                    self.processes.append(
                        (port, subprocess.Popen(command, stdout=log, stderr=log, cwd=folder, stdin=subprocess.DEVNULL))
                    )

    def wait(self):
        for port, process in self.processes:
            wait(port, "/health", process, f"the node on port {port}")

    def stop(self):
        for _, process in self.processes:
            process.kill()
            process.wait()


def wait(port, path, process, name):
    end = time.time() + 300
    while time.time() < end and process.poll() is None:
        try:
            if get(port, path)[0] == 200:
                return
        except OSError:
            pass
        time.sleep(0.2)
    sys.exit(f"{name} does not start")


def get(port, path):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def configuration(nodes, form, prefill, decode, rest, port):
    lines = [f"port: {port}", "host: 127.0.0.1", "startup: {probe_interval_seconds: 1}"]
    counts = {"prefill": prefill, "decode": decode}
    if form == "instances":
        lines.append("instances:")
    else:
        lines.append(f"model: {MODEL}")
    for role, count in counts.items():
        addresses = [f"127.0.0.1:{nodes.ports[role] + i}" for i in range(count)]
        if form == "lists":
            lines.append(f"{role}: {json.dumps(addresses)}")
        elif form == "topology":
            sizes = f"tp_size: 1, dp_size: {count}, world_size_per_node: {count}"
            lines.append(f"{role}: {{nodes: [{addresses[0]}], {sizes}}}")
        else:
            lines += [f"  - {{address: {a}, role: {role}, model: {MODEL}}}" for a in addresses]
    return "\n".join(lines) + "\n" + rest


def body(index):
    """Completions and chat, streamed and not, in turn."""
    dice = random.Random(index)
    words = " ".join(f"w{dice.randrange(1000)}" for _ in range(dice.randrange(1, 200)))
    tokens = dice.randrange(1, TOKENS + 1)
    asked = {"model": MODEL, "max_tokens": tokens, "user": f"user-{index % 97}"}
    if index & 2:
        asked["stream"] = True
        if index & 4:
            asked["stream_options"] = {"include_usage": True}
    if index & 1:
        return "/v1/chat/completions", {**asked, "messages": [{"role": "user", "content": words}]}
    return "/v1/completions", {**asked, "prompt": words}


def text_of(choice):
    part = choice.get("message") or choice.get("delta") or {}
    return (part.get("content") if "text" not in choice else choice["text"]) or ""


def reference(port, tokens):
    """(text, finish reason) that the node gives by itself."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    asked = {"model": MODEL, "prompt": "w", "max_tokens": tokens}
    connection.request("POST", "/v1/completions", json.dumps(asked), {"content-type": "application/json"})
    choice = json.load(connection.getresponse())["choices"][0]
    connection.close()
    if len(choice["text"].split()) != tokens:
        sys.exit(f"the node itself gives {choice['text']!r} for {tokens} tokens")
    return choice["text"], choice["finish_reason"]


def judge(asked, status, kind, raw, references):
    """None, or what is wrong."""
    if status != 200:
        return f"status {status}: {raw[:200]}"
    tokens = asked["max_tokens"]
    if asked.get("stream"):
        if not kind.startswith("text/event-stream"):
            return f"content type {kind}"
        events = [e.removeprefix("data:").strip() for e in raw.split("\n\n") if e]
        if not raw.endswith("\n\n") or events.count("[DONE]") != 1 or events[-1] != "[DONE]":
            return f"no proper end: {raw[-200:]!r}"
        parts = [json.loads(e) for e in events[:-1]]
        if any("error" in part for part in parts) or len({part["id"] for part in parts}) != 1:
            return f"errors, or several ids: {raw[-300:]!r}"
        choices = [choice for part in parts for choice in part["choices"]]
        usage = [part["usage"] for part in parts if part.get("usage")]
        if "stream_options" in asked and [u["completion_tokens"] for u in usage] != [tokens]:
            return f"usage {usage}"
    else:
        answer = json.loads(raw)
        choices = answer["choices"]
        if answer["usage"]["completion_tokens"] != tokens:
            return f"usage {answer['usage']}"
    text, reasons = "".join(map(text_of, choices)), [c["finish_reason"] for c in choices if c["finish_reason"]]
    if (text, reasons) != (references[tokens][0], [references[tokens][1]]):
        return f"{tokens} tokens asked: {text!r}, {reasons}, not {references[tokens]}"
    return None


def client(port, indexes, references, failures, times):
    """Sends these requests one after the other over one connection."""
    connection = None
    for index in indexes:
        path, asked = body(index)
        began = time.time()
        try:
            connection = connection or http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            connection.request("POST", path, json.dumps(asked), {"content-type": "application/json"})
            answer = connection.getresponse()
            # http.client raises if the answer ends early.
            raw = answer.read().decode()
            wrong = judge(asked, answer.status, answer.getheader("content-type", ""), raw, references)
        except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError) as error:
            wrong = repr(error)
            if connection:
                connection.close()
            connection = None
        times.append(time.time() - began)
        if wrong:
            failures.append((index, path, wrong))


def served(port, role):
    """Which instances of this role had requests, by the metrics that xPyD's dashboards read."""
    _, text = get(port, "/metrics")
    found = re.findall(rf'^proxy_{role}_requests_total{{[^}}]*{role}_instance="([^"]+)"[^}}]*}} ([0-9.]+)', text, re.M)
    return {address for address, count in found if address != "unknown" and float(count)}


def run(binary, nodes, topology, count, clients, references):
    name, prefill, decode, form, rest = topology
    port, folder = free_ports(1), COMPARE / "sim"
    path = folder / f"{name}.yaml"
    path.write_text(configuration(nodes, form, prefill, decode, rest, port))
    log = folder / f"{name}.log"
    with open(log, "w") as out:
        proxy = subprocess.Popen([binary, "xpyd", "--config", path], stdout=out, stderr=out, stdin=subprocess.DEVNULL)
    try:
        # Behind the gate until a node of each role is healthy; then until all are.
        wait(port, "/v1/models", proxy, f"the proxy ({log})")
        end = time.time() + 30
        while get(port, "/status/instances")[1].count('"healthy"') < prefill + decode and time.time() < end:
            time.sleep(0.1)
        failures, times, began = [], [], time.time()
        threads = [
            threading.Thread(target=client, args=(port, range(c, count, clients), references, failures, times))
            for c in range(clients)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        seconds = time.time() - began
        used = {role: len(served(port, role)) for role in ("prefill", "decode")}
    finally:
        proxy.send_signal(signal.SIGTERM)
        code = proxy.wait(60)
    wrong = [f"request {i} ({path}): {why}" for i, path, why in failures[:5]]
    if len(times) != count:
        wrong.append(f"{len(times)} answers for {count} requests")
    if "roundrobin" in rest and used != {"prefill": prefill, "decode": decode}:
        wrong.append(f"only {used} had requests")
    if code != 128 + signal.SIGTERM:
        wrong.append(f"the proxy ended with {code}")
    times.sort()
    shown = rest.replace("\n", " ").strip() or "loadbalanced"
    print(
        f"{name:6} {form:9} {shown:51} {count:6} {len(failures):6}  {used['prefill']:2}P {used['decode']:2}D "
        f"{seconds:7.1f} s {count / seconds:6.0f}/s  p50 {times[len(times) // 2] * 1e3:5.0f} ms "
        f"p99 {times[len(times) * 99 // 100] * 1e3:5.0f} ms  {'ok' if not wrong else 'FAILED'}",
        *(f"       {line}" for line in wrong),
        sep="\n",
        flush=True,
    )
    return len(failures), bool(wrong)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pdrelay", default=pdrelay("release"))
    parser.add_argument("--requests", type=int, default=10000, help="over all topologies")
    parser.add_argument("--clients", type=int, default=8, help="at once")
    parser.add_argument("--only", help="one topology")
    args = parser.parse_args()
    chosen = [t for t in TOPOLOGIES if args.only in (None, t[0])]
    if not chosen:
        sys.exit(f"no such topology: {args.only}")
    share = -(-args.requests // len(chosen))
    began = time.time()
    nodes = Nodes(max(t[1] for t in chosen), max(t[2] for t in chosen))
    try:
        nodes.wait()
        print(f"{len(nodes.processes)} nodes of xpyd-sim after {time.time() - began:.0f} s", flush=True)
        references = {n: reference(nodes.ports["decode"], n) for n in range(1, TOKENS + 1)}
        print(f"{'':6} {'form':9} {'settings':51} {'asked':>6} {'failed':>6}  had requests")
        results = [run(args.pdrelay, nodes, topology, share, args.clients, references) for topology in chosen]
    finally:
        nodes.stop()
    failed, bad = sum(r[0] for r in results), any(r[1] for r in results)
    print(f"{share * len(chosen)} requests, {failed} failed, {time.time() - began:.0f} s: {'FAIL' if bad else 'PASS'}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
