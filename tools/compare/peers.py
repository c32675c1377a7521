#!/usr/bin/env python3
"""pdrelay beside its peers on this machine, in one interleaved run: `tools/compare/peers.py --help`.

Installs the peers below $COMPARE (install.py), starts them all in front of the same simulated engines, checks that they answer
rightly (check.py), measures them in turns (load.py), and writes peers.md, peers.json and charts."""

import argparse
import json
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import time
from datetime import datetime, timezone

from bench import check, client, install, load, machine, peer, table
from bench.engine import Engines
from bench.run import Lab
from originals import COMPARE


def arguments():
    line = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    line.add_argument("--quick", action="store_true", help="a few rows, one round, the quick peers: under 3 minutes")
    line.add_argument("--rounds", type=int, help="interleaved rounds (default 3; quick 1)")
    line.add_argument("--seconds", type=float, help="a window's length (default 3; quick 2)")
    line.add_argument("--peers", help="only these, by comma: " + ", ".join(f"'{one.name}'" for one in peer.ALL))
    line.add_argument("--only", help="only loads whose name has this in it; 'idle' and 'bench' are loads, too")
    line.add_argument("--idle", type=int, default=10_000, help="idle streams, as far as open files allow (0: none)")
    line.add_argument("--proxy-cpus", help="CPUs of the proxy, by comma (default: the first)")
    line.add_argument("--load-cpus", help="CPUs of engines and load (default: all others)")
    line.add_argument("--base", type=int, default=21_000, help="first port; 200 are used")
    line.add_argument("--budget", type=float, default=60, help="minutes after which no further round begins")
    line.add_argument("--out", type=pathlib.Path, default=COMPARE / "results", help="where the results go")
    return line.parse_args()


def cpus(args):
    mine = sorted(os.sched_getaffinity(0))
    if len(mine) < 2:
        sys.exit("two CPUs are needed: one for the proxy, one for engines and load")
    proxy = {int(cpu) for cpu in args.proxy_cpus.split(",")} if args.proxy_cpus else {mine[0]}
    rest = {int(cpu) for cpu in args.load_cpus.split(",")} if args.load_cpus else set(mine) - proxy
    return proxy, rest


def chosen_peers(args):
    if args.peers:
        names = [name.strip() for name in args.peers.replace("pdrelay, 2 shards", "pdrelay;2").split(",")]
        names = [name.replace("pdrelay;2", "pdrelay, 2 shards") for name in names]
        unknown = set(names) - {one.name for one in peer.ALL}
        if unknown:
            sys.exit(f"no peer {', '.join(sorted(unknown))}; there are: {', '.join(one.name for one in peer.ALL)}")
        return [one for one in peer.ALL if one.name in names or one is peer.Direct]
    if args.quick:
        return [one for one in peer.ALL if not one.slow and one is not peer.TwoShards]
    return peer.ALL


class Run:
    def __init__(self, args, lab):
        self.args, self.lab, self.began = args, lab, time.monotonic()
        self.kinds = chosen_peers(args)
        self.result = {"rows": [], "idle": [], "bench": [], "engines": [], "wrong": [], "peers": {}}
        self.next_port = lab.base + 10

    def say(self, text):
        print(f"{time.monotonic() - self.began:6.0f} s  {text}", file=sys.stderr, flush=True)

    def late(self):
        return time.monotonic() - self.began > self.args.budget * 60

    def wanted(self, name):
        return not self.args.only or self.args.only in name

    def start(self, flags, kinds, apart=False):
        engines = Engines(self.lab, self.lab.base, flags, apart)
        found = []
        # Ports move on, so that nothing of the group before is in the way.
        for kind in kinds:
            self.next_port = self.lab.base + 10 + (self.next_port - self.lab.base - 6) % 180
            one = kind(self.lab, engines, self.next_port)
            found.append(one)
            self.result["peers"].setdefault(one.name, {"version": one.version(), "flags": one.flags, "hops": one.hops, "stages": one.stages})
        self.say(f"started: {', '.join(one.name for one in found)}")
        return engines, found

    def stop(self, name, engines, found):
        for one in found:
            one.stop()
        self.result["engines"].append({"group": name, **engines.stop()})

    def check(self, found):
        """Those that answer rightly."""
        direct, good = found[0], []
        for one in found:
            wrong = check.wrong(one, direct) if one is not direct else []
            legs = check.legs(one)
            self.result["peers"][one.name].update(legs)
            if legs["asks_prefill"] != one.stages:
                wrong.append(f"prefill {'was not' if one.stages else 'was'} asked")
            self.result["wrong"] += [f"{one.name}: {text}" for text in wrong]
            for text in wrong:
                self.say(f"WRONG    {one.name}: {text}")
            if not wrong:
                good.append(one)
        self.say(f"answer rightly: {', '.join(one.name for one in good)}")
        return good

    def group(self, group):
        cells = [cell for cell in group.cells if self.wanted(cell.name) and (cell.quick or not self.args.quick)]
        if not cells or self.late():
            return
        kinds = [kind for kind in self.kinds if any(load.asked(cell, kind) for cell in cells)]
        engines, found = self.start(group.engines, kinds)
        # Wrong answers do not get faster with the engines' pace: once is enough, if it is with all peers.
        found = self.check(found)
        for number in range(self.args.rounds):
            if self.late():
                self.say(f"{group.name}: the time is over after {number} rounds")
                break
            for cell in cells:
                # Everybody is first in some round.
                turn = number % len(found)
                for one in found[turn:] + found[:turn]:
                    if not load.asked(cell, one):
                        continue
                    row = load.measure(self.lab, one, cell, self.args.seconds)
                    where = {"group": group.name, "cell": cell.name, "unit": cell.unit, "peer": one.name, "round": number}
                    self.result["rows"].append({**where, **row})
                    self.show(cell, one, row)
        self.stop(group.name, engines, found)

    def show(self, cell, one, row):
        if "error" in row:
            return self.say(f"{cell.name:28} {one.name:18} FAILED: {row['error'][:150]}")
        cpu = f"{row['cpu_us']:9.1f} us/{cell.unit}" if row.get("cpu_us") is not None else " " * 20
        self.say(f"{cell.name:28} {one.name:18} {cpu} {row['requests_per_s']:9.0f} requests/s, steal {row['steal'] * 100:.0f} %")

    def idle(self):
        """Each proxy alone: its streams are many."""
        if not self.args.idle or not self.wanted("idle") or self.args.quick:
            return
        most = min(self.args.idle, (self.lab.files - 300) // 2)
        if most < self.args.idle:
            self.say(f"{self.lab.files} open files allow {most} idle streams, not {self.args.idle}")
        for kind in self.kinds:
            if kind in (peer.Direct, peer.TwoShards, peer.TwoNginx, peer.TwoHaproxy) or self.late():
                continue
            engines, found = self.start(["--stall-after", 1], [kind], apart=True)
            time.sleep(1)
            row = load.idle(self.lab, found[0], most if not kind.slow else min(most, 400))
            self.result["idle"].append({"peer": kind.name, **row})
            self.say(f"idle     {kind.name}: {row}")
            for one in found:
                one.stop()
            engines.stop()

    def bench(self):
        if not self.wanted("bench") or self.args.quick or self.late():
            return
        kinds = [kind for kind in self.kinds if kind not in (peer.TwoShards, peer.TwoNginx, peer.TwoHaproxy)]
        engines, found = self.start(["--decode-tick-ms", 5], kinds)
        # Each takes many seconds, most of them to start Python.
        for number in range(max(1, self.args.rounds // 3)):
            for one in found:
                if self.late():
                    break
                row = client.bench_serve(self.lab, one)
                self.result["bench"].append({"peer": one.name, "round": number, **row})
                self.say(f"bench    {one.name}: {row.get('error', row['line'])[:200]}")
        self.stop("bench", engines, found)


def main():
    args = arguments()
    # A polite end is an end through `with`: nothing that we started stays.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))
    args.rounds = args.rounds or (1 if args.quick else 3)
    args.seconds = args.seconds or (2 if args.quick else 3)
    binaries = install.our_binaries()
    before = machine.facts()
    proxy, rest = cpus(args)
    with Lab(binaries, proxy, rest, args.base) as lab:
        run = Run(args, lab)
        run.say(f"proxy on CPUs {sorted(proxy)}, engines and load on {sorted(rest)}; load average {before['load_average']}")
        if before["load_average"][0] > 0.7:
            run.say("WARNING  this machine is busy: believe ratios of one run, and no absolute figure")
        for group in load.groups():
            run.group(group)
        run.idle()
        run.bench()
    result = {
        "command": "tools/compare/peers.py " + shlex.join(sys.argv[1:]),
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": before,
        "rounds": args.rounds,
        "seconds": args.seconds,
        "proxy_cpus": sorted(proxy),
        "load_cpus": sorted(rest),
        **run.result,
    }
    return write(args.out, result)


def write(folder, result):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "peers.json").write_text(json.dumps(result, indent=1) + "\n")
    (folder / "peers.md").write_text(table.page(result))
    print(table.page(result))
    if result["rows"]:
        chart = pathlib.Path(__file__).parent / "bench" / "chart.py"
        subprocess.run([install.charts_python(), chart, folder / "peers.json", folder], check=True)
    failed = [row for part in ("rows", "idle", "bench") for row in result[part] if "error" in row]
    for row in failed:
        print(f"FAILED   {row.get('cell', '')} {row['peer']}: {row['error'][:200]}", file=sys.stderr)
    for text in result["wrong"]:
        print(f"WRONG    {text}", file=sys.stderr)
    return 1 if failed or result["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main())
