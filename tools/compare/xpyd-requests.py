#!/usr/bin/env python3
"""Compares what xPyD-proxy (1.0.0 and 1.8.0, from PyPI) and `pdrelay xpyd` send to engines and to clients.

usage: xpyd-requests.py [--pdrelay PATH] [--only NAME] [--rig NAME] [--verbose]

Each original is installed once into a throw-away virtual environment below $COMPARE (default: the user's
cache folder, pdrelay-compare). A rig is one configuration: the original and pdrelay get the same file, but for
the port, and the same engines (engines.py), which note what reaches them. Each request of xpyd-requests.tsv goes
to both. Compared are: which engines were asked for what, in which order; the bodies and the Authorization they
got; the client's status, type, body (as JSON, or as events) and whether it ended properly. Each difference is
one line, and must match a row of xpyd-request-differences.tsv, which has the reason; each row must be of use:
else the exit code is 1. Needs Python 3.10 or newer with venv, and pip's registry within reach.
"""

import argparse
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time

from engines import Engines
from originals import COMPARE, HERE, MODEL, installed, pdrelay, tokenizers

KEYS = {"ADMIN_API_KEY": "admin-k", "OPENAI_API_KEY": "openai-k"}
LISTS = "model: $M\nprefill: [$P0]\ndecode: [$D0, $D1]\n"
# All that the originals do not do is off, so that like is compared with like; the rig `defaults` has it on.
OFF = "".join(f"{section}: {{enabled: false}}\n" for section in ("retry", "circuit_breaker", "health_check"))
MODELS = """instances:
  - {address: $P0, role: prefill, model: $M}
  - {address: $D0, role: decode, model: $M}
  - {address: $A0, role: aggregated, model: other}
"""
# name -> (configuration of 1.8, configuration of 1.0 or None, environment)
RIGS = {
    "lists": (LISTS + OFF, LISTS + OFF, KEYS),
    "first": (LISTS + OFF + "first_token_source: prefill\n", LISTS + OFF + "generator_on_p_node: true\n", {}),
    "nixl": (LISTS + OFF + "disaggregated_mode: nixl\n", None, KEYS),
    "nixl-first": (LISTS + OFF + "disaggregated_mode: nixl\nfirst_token_source: prefill\n", None, {}),
    "models": (MODELS + OFF, None, KEYS),
    "nobody": ("model: $M\nprefill: [$X0]\ndecode: [$X1]\n" + OFF, None, KEYS),
    "defaults": ("model: $M\nprefill: [$X0, $P0]\ndecode: [$X1, $D0]\n", None, {}),
}
JSON = "application/json"


def read_requests(path):
    """[(name, rig, versions, method, path, headers, body)]"""
    requests = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if not line or line.startswith("#"):
            continue
        name, rig, versions, target, headers, body = (line.split("\t") + ["", ""])[:6]
        if rig not in RIGS or any(r[0] == name for r in requests):
            sys.exit(f"{path}:{number}: no rig {rig}, or {name} is there already")
        versions = versions.split(",")
        short = {"json": f"content-type: {JSON}", "admin": "x-api-key: admin-k"}
        headers = [short.get(h.strip(), h.strip()) for h in headers.split("|") if h.strip()]
        requests.append((name, rig, versions, *target.split(" ", 1), headers, body))
    return requests


def read_differences(path):
    """[[pattern of cases, versions, pattern of a difference, reason, times used]]"""
    rows = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if line and not line.startswith("#"):
            fields = line.split("\t")
            if len(fields) != 4:
                sys.exit(f"{path}:{number}: not CASES, VERSIONS, DIFFERENCE, REASON")
            rows.append([re.compile(fields[0]), fields[1], re.compile(fields[2]), fields[3], 0])
    return rows


class Proxy:
    """One proxy that runs with this configuration."""

    def __init__(self, name, command, config, environment, engines):
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        folder = COMPARE / "requests"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{name}.yaml"
        path.write_text(config + f"port: {self.port}\nstartup: {{probe_interval_seconds: 1}}\n")
        clean = {k: v for k, v in os.environ.items() if not k.endswith("_API_KEY") and k != "XPYD_CONFIG"}
        offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
        self.log = folder / f"{name}.log"
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(
                [*command, "--config", path],
                env={**clean, **offline, **environment},
                cwd=tokenizers(),  # 1.0 finds the tokenizer of the model here
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self.name, self.engines = name, engines

    def wait(self, path):
        end = time.time() + 300
        while time.time() < end and self.process.poll() is None:
            try:
                if ask(self.port, "GET", path, [], b"")["status"] == 200:
                    return
            except OSError:
                pass
            time.sleep(0.1)
        sys.exit(f"{self.name} does not start:\n{self.log.read_text()[-2000:]}")

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def ask(port, method, path, headers, body):
    """The whole answer, read until the connection ends."""
    head = [f"{method} {path} HTTP/1.1", f"host: 127.0.0.1:{port}", "connection: close", *headers]
    if body or method == "POST":
        head.append(f"content-length: {len(body)}")
    raw = b""
    with socket.create_connection(("127.0.0.1", port), 20) as s:
        s.sendall("\r\n".join(head + ["", ""]).encode() + body)
        try:
            while data := s.recv(65536):
                raw += data
        except ConnectionError:
            pass
    head, _, body = raw.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {}
    for line in lines:
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip()
    whole = bool(first)
    if headers.get("transfer-encoding") == "chunked":
        data, whole = b"", False
        while body:
            size, _, body = body.partition(b"\r\n")
            size = int(size, 16)
            if size == 0:
                whole = True
                break
            data, body = data + body[:size], body[size + 2 :]
        body = data
    elif "content-length" in headers and method != "HEAD":
        whole = len(body) == int(headers["content-length"])
    status = int(first.split(" ")[1]) if first else 0
    return {"status": status, "headers": headers, "body": body.decode("utf-8", "replace"), "whole": whole}


def parsed(kind, text):
    """What a body means, in a form that can be compared."""
    if kind.startswith("text/event-stream"):
        return [parsed_event(event) for event in text.split("\n\n") if event.strip()]
    if kind.startswith("text/plain; version="):
        return families(text)
    try:
        return json.loads(text)
    except ValueError:
        return text


def parsed_event(event):
    lines = event.strip().split("\n")
    data = "\n".join(line[5:].strip() for line in lines if line.startswith("data:"))
    try:
        data = json.loads(data)
    except ValueError:
        pass
    return {"lines": [line.partition(":")[0] for line in lines], "data": data}


def families(text):
    """name -> type, help, and names of labels; the numbers depend on time and on what came before."""
    found = {}
    for line in text.splitlines():
        if line.startswith(("# HELP ", "# TYPE ")):
            _, what, name, value = line.split(" ", 3)
            found.setdefault(name, {})[what] = value
        elif line:
            name, _, labels = line.rpartition(" ")[0].partition("{")
            found.setdefault("sample " + name, {})["labels"] = ",".join(sorted(re.findall(r'(\w+)="', labels)))
    return {name: value for name, value in found.items() if not name.startswith(("pdrelay_", "sample pdrelay_"))}


def differences(where, theirs, ours):
    """One line for each place where the two differ."""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        for key in list(theirs) + [key for key in ours if key not in theirs]:
            yield from differences(f"{where}.{key}", theirs.get(key, ABSENT), ours.get(key, ABSENT))
    elif isinstance(theirs, list) and isinstance(ours, list):
        for i in range(max(len(theirs), len(ours))):
            pair = [side[i] if i < len(side) else ABSENT for side in (theirs, ours)]
            yield from differences(f"{where}[{i}]", *pair)
    elif theirs != ours or isinstance(theirs, bool) != isinstance(ours, bool):
        yield f"{where}: {shown(theirs)} -> {shown(ours)}"


ABSENT = object()


def shown(value):
    return "absent" if value is ABSENT else json.dumps(value, ensure_ascii=False)


def exchange(proxy, request, names):
    """What the client and the engines saw of one request."""
    _, _, _, method, path, headers, body = request
    for name, address in names.items():
        body = body.replace("$" + name, address)
    proxy.engines.take()
    began = time.time()
    answer = ask(proxy.port, method, path, headers, body.replace("$M", MODEL).encode())
    time.sleep(0.02)  # an engine may note a request that the client no longer waits for
    kind = answer["headers"].get("content-type", "")
    engines = [
        {
            "engine": e["engine"],
            "request": e["request"],
            "authorization": e["headers"].get("authorization", ABSENT),
            "type": e["headers"].get("content-type", ABSENT),
            "body": parsed(JSON, e["body"]),
        }
        for e in proxy.engines.take()
    ]
    # The newest starlette adds `vary: origin` to everything, older ones do not: only a preflight's is compared.
    kept = ("allow", "location") + (("vary",) if method == "OPTIONS" else ())
    headers = {k: v for k, v in answer["headers"].items() if k in kept or k.startswith("access-control-")}
    text = answer["body"]
    for name, address in names.items():
        text = text.replace(address, name)
    text = re.sub(r'("last_check":)[0-9.]+', r'\1"a time"', text)
    legs = [f"{e['engine']} {e['request']}" for e in engines]
    return {
        # All engines are asked for a page at the same time here, so there the order means nothing.
        "legs": sorted(legs) if path in ("/ping", "/health") else legs,
        "engines": engines,
        "status": answer["status"],
        "type": kind,
        "headers": headers,
        "end": "whole" if answer["whole"] else "broken off",
        "text": text,
        "seconds": time.time() - began,
    }


def compared(theirs, ours):
    """All differences between two exchanges."""
    bodies = [parsed(e["type"], e["text"]) for e in (theirs, ours)]
    if theirs["status"] != ours["status"]:
        # Another answer altogether: one line says all.
        before, after = (f"{e['status']} {shown(body)}" for e, body in zip((theirs, ours), bodies))
        yield f"answer: {before} -> {after}"
    else:
        yield from differences("answer", *bodies)
    yield from differences("type", theirs["type"], ours["type"])
    yield from differences("headers", theirs["headers"], ours["headers"])
    yield from differences("end", theirs["end"], ours["end"])
    if theirs["legs"] != ours["legs"]:
        yield f"legs: {shown(theirs['legs'])} -> {shown(ours['legs'])}"
    # Each engine's requests, in order; one that only one side has is in `legs`.
    for name in dict.fromkeys(e["engine"] for e in theirs["engines"]):
        pairs = zip(*([e for e in x["engines"] if e["engine"] == name] for x in (theirs, ours)))
        for their, our in pairs:
            for part in ("authorization", "type", "body"):
                yield from differences(f"{name} {part}", their[part], our[part])


def run_rig(rig, requests, binary, verbose):
    """Yields (request, version, theirs, ours)."""
    new_config, old_config, environment = RIGS[rig]
    engines = Engines({"P0": MODEL, "D0": MODEL, "D1": MODEL, "N0": MODEL, "A0": "other", "W0": "wrong"})
    names = engines.addresses()
    # Dead addresses: bound and never listened on, so that they refuse and no other program gets them.
    dead = [socket.socket() for _ in range(2)]
    for i, s in enumerate(dead):
        s.bind(("127.0.0.1", 0))
        names[f"X{i}"] = "127.0.0.1:%d" % s.getsockname()[1]
    proxies = {}
    for version, config in (("1.8", new_config), ("1.0", old_config)):
        if not any(version in request[2] for request in requests):
            continue
        for name, address in names.items():
            config = config.replace("$" + name, address)
        config = config.replace("$M", MODEL)
        if version == "1.8":
            config += f"host: 127.0.0.1\ntokenizer_path: {tokenizers()}\n"
        commands = {"theirs": [installed(version) / "xpyd"], "ours": [binary, "xpyd"]}
        for side, command in commands.items():
            proxies[version, side] = Proxy(f"{rig}-{version}-{side}", command, config, environment, engines)
    try:
        for proxy in proxies.values():
            proxy.wait("/status" if rig == "nobody" else "/v1/models")
        for request in requests:
            for version in request[2]:
                theirs, ours = (exchange(proxies[version, side], request, names) for side in ("theirs", "ours"))
                if verbose:
                    print(f"{request[0]} {version}\n  theirs: {theirs}\n  ours:   {ours}")
                yield request, version, theirs, ours
    finally:
        for proxy in proxies.values():
            proxy.stop()
        engines.close()
        for s in dead:
            s.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pdrelay", default=pdrelay("debug"))
    parser.add_argument("--only", help="one request; those before it in its rig are left out")
    parser.add_argument("--rig", help="the requests of one rig")
    parser.add_argument("--verbose", action="store_true", help="everything that was seen")
    args = parser.parse_args()
    requests = read_requests(HERE / "xpyd-requests.tsv")
    asked = [r for r in requests if args.only in (None, r[0]) and args.rig in (None, r[1])]
    rows = read_differences(HERE / "xpyd-request-differences.tsv")
    began, agree, listed, wrong = time.time(), 0, 0, 0
    for rig in RIGS:
        of_rig = [request for request in asked if request[1] == rig]
        for request, version, theirs, ours in run_rig(rig, of_rig, args.pdrelay, args.verbose) if of_rig else ():
            name, lines, bad = request[0], [], False
            for line in compared(theirs, ours):
                row = next((r for r in rows if r[0].fullmatch(name) and version in r[1] and r[2].fullmatch(line)), None)
                bad |= row is None
                if row:
                    row[4] += 1
                lines.append(f"      {line}\n          {'as listed: ' + row[3] if row else 'NOT LISTED'}")
            verdict = "WRONG" if bad else "differs as listed" if lines else "agrees"
            print(f"{version} {rig:10} {name:34} {verdict}", *lines, sep="\n", flush=True)
            agree, listed, wrong = agree + (not lines), listed + (bool(lines) and not bad), wrong + bad
    print("\ntimes  reason")
    for row in rows:
        if row[4]:
            print(f"{row[4]:5}  {row[3]}")
    idle = [row for row in rows if not row[4]] if len(asked) == len(requests) else []
    for row in idle:
        print(f"this row is of no use: {row[0].pattern}\t{row[1]}\t{row[2].pattern}\t{row[3]}")
    print(
        f"{len(asked)} requests, {agree + listed + wrong} comparisons: {agree} agree, {listed} differ as listed, "
        f"{wrong} are wrong; {len(idle)} rows of no use; {time.time() - began:.0f} s"
    )
    return 1 if wrong or idle else 0


if __name__ == "__main__":
    sys.exit(main())
