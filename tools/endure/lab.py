"""What the endurance runs share: processes that die with the run, a look into them, and verdicts.

Everything listens on loopback, at ports from BASE (19200). Binaries are built unless BIN names a folder that
has them.
"""

import ctypes
import http.client
import json
import os
import pathlib
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
KEY = "endure"


def number(name, default):
    """A setting of a run, from the environment."""
    return type(default)(os.environ.get(name, default))


BASE = number("BASE", 19200)


def binaries():
    given = os.environ.get("BIN")
    if given:
        return pathlib.Path(given)
    packages = ["-p", "pdrelay", "-p", "pdsim", "-p", "pdload"]
    subprocess.run(["cargo", "build", "--release", "--quiet", *packages], cwd=ROOT, check=True)
    return pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release"


def dies_with_us():
    # An interrupted run must leave nothing behind that listens.
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


class Process:
    def __init__(self, lab, name, command, env=None):
        self.log = lab.folder / f"{name}.log"
        self.name = name
        environment = {**os.environ, **(env or {})}
        with open(self.log, "ab") as out, open(f"{self.log}.err", "ab") as err:
            self.child = subprocess.Popen(
                [str(part) for part in command], stdout=out, stderr=err, env=environment,
                stdin=subprocess.DEVNULL, preexec_fn=dies_with_us)
        self.pid = self.child.pid
        lab.processes.append(self)

    def text(self):
        return self.log.read_text(errors="replace")

    def errors(self):
        return pathlib.Path(f"{self.log}.err").read_text(errors="replace")

    def alive(self):
        return self.child.poll() is None

    def kill(self):
        self.child.kill()
        self.child.wait()

    def stop(self, seconds=40):
        if self.alive():
            self.child.terminate()
        try:
            return self.child.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            return None

    def status(self, *names):
        """Fields of /proc/PID/status as numbers (memory in KiB)."""
        lines = pathlib.Path(f"/proc/{self.pid}/status").read_text().splitlines()
        found = dict(line.split(":", 1) for line in lines)
        return [int(found[name].split()[0]) for name in names]

    def descriptors(self):
        return len(os.listdir(f"/proc/{self.pid}/fd"))


class Lab:
    """A folder and processes, both gone at the end (LOGS=1 keeps the folder)."""

    def __enter__(self):
        self.bin = binaries()
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="endure-"))
        self.processes = []
        self.failed = 0
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        self.files = hard
        return self

    def __exit__(self, *_):
        for process in self.processes:
            if process.alive():
                process.kill()
        if os.environ.get("LOGS"):
            print(f"logs     {self.folder}")
        else:
            shutil.rmtree(self.folder, ignore_errors=True)

    def simulator(self, name, *flags):
        return Process(self, name, [self.bin / "pdsim", *flags])

    def engine(self, role, port, *flags):
        """One engine in a process of its own, so that its death is a real one."""
        place = [f"--{role}", 1, "--port-base", port, "--kv-elsewhere", "--seed", port]
        process = self.simulator(f"{role}-{port}", *place, *flags)
        process.again = lambda: self.engine(role, port, *flags)
        wait_port(port)
        return process

    def relay(self, port, *flags):
        command = [self.bin / "pdrelay", "serve", "--host", "127.0.0.1", "--port", port, *flags]
        process = Process(self, "pdrelay", command, {"ADMIN_API_KEY": KEY})
        process.port = port
        wait_port(port)
        return process

    def load(self, name, port, *flags):
        url = f"http://127.0.0.1:{port}"
        common = ["--url", url, "--warmup-s", 0, "--allow-errors", "--json", "-"]
        return Process(self, name, [self.bin / "pdload", *common, *flags])

    def check(self, good, text):
        print(f"{'PASS' if good else 'FAIL'}     {text}", flush=True)
        self.failed += not good

    def verdict(self):
        print("FAILED" if self.failed else "PASSED")
        return 1 if self.failed else 0


def wait_port(port, seconds=20):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if ask(port, "GET", "/health")[0] == 200:
                return
        except OSError:
            pass
        time.sleep(0.02)
    raise SystemExit(f"nothing answers on port {port}")


def ask(port, method, path, body=None, timeout=60):
    """One request on a connection of its own: status and text. (On a busy machine anything may take a while.)"""
    link = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    try:
        text = None if body is None else json.dumps(body)
        link.request(method, path, text, {"x-api-key": KEY, "connection": "close"})
        answer = link.getresponse()
        return answer.status, answer.read().decode(errors="replace")
    finally:
        link.close()


def metrics(port):
    """Series of /metrics, and the sum of each family under its bare name."""
    found = {}
    for line in ask(port, "GET", "/metrics")[1].splitlines():
        if line.startswith("#") or " " not in line:
            continue
        name, value = line.rsplit(" ", 1)
        found[name] = float(value)
        if "{" in name:
            family = name.split("{")[0]
            found[family] = found.get(family, 0.0) + float(value)
    return found


class Result:
    """What one pdload reports. Its requests are all measured: there is no warm-up."""

    def __init__(self, process, seconds):
        process.child.wait(seconds)
        text = process.text()
        if not text.strip():
            sys.exit(f"{process.name} measured nothing: {process.errors()[-500:]}")
        self.report = json.loads(text)
        asked, errors = self.report["requests"], self.report["errors"]
        statuses = {int(code): count for code, count in errors["statuses"].items()}
        self.ok, self.failed = asked["ok"], asked["failed"]
        self.unfinished = asked["unfinished"]
        self.kinds, self.samples = errors["by_kind"], errors["samples"]
        # A status is noted when the head has come; so what failed with a 200 was cut in its middle.
        self.cut = statuses.get(200, 0) - self.ok
        self.uncommitted = self.failed - self.cut + self.unfinished
        self.total = self.ok + self.failed + self.unfinished

    def line(self, name, samples=True):
        kinds = ", ".join(f"{count} {kind}" for kind, count in self.kinds.items())
        delay = self.report["latency"]["e2e"]
        print(f"{name:8} {self.total} requests: {self.ok} ok, {self.cut} cut in their middle, "
              f"{self.uncommitted} failed before a byte; e2e p50 {delay['p50_us'] / 1e3:.0f} ms, "
              f"p99 {delay['p99_us'] / 1e3:.0f} ms" + (f" ({kinds})" if kinds else ""))
        if self.uncommitted and samples:
            for sample in self.samples:
                print(f"         {sample}")


def ledger(text):
    """The counts of a simulator's last words."""
    line = next((line for line in text.splitlines() if line.startswith("ledger:")), "")
    return {name: int(count) for name, count in re.findall(r"([a-z-]+) (\d+)", line)}


def panics(relay):
    return [line for line in relay.errors().splitlines() if "panic" in line]
