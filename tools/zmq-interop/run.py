#!/usr/bin/env python3
"""Notices from real libzmq PUSH sockets, with reconnects and restarts of pdrelay: none lost, none counted twice."""

import argparse
import http.client
import http.server
import json
import os
import pathlib
import queue
import socket
import subprocess
import sys
import tempfile
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
CACHE = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache")
VENV = pathlib.Path(os.environ.get("COMPARE") or CACHE / "pdrelay-compare") / "zmq"
PACKAGES = ["pyzmq==27.1.0", "msgspec==0.20.0"]
RANKS = 4
CLIENTS = 8
STALE = 50


def into_environment():
    """Starts again inside the environment that has the packages."""
    python = VENV / "bin" / "python"
    if not (VENV / "installed").exists():
        print(f"installing {' '.join(PACKAGES)} into {VENV}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", "--clear", VENV], check=True)
        subprocess.run([python, "-m", "pip", "install", "-q", *PACKAGES], check=True)
        (VENV / "installed").touch()
    if pathlib.Path(sys.prefix) != VENV:
        os.execv(python, [python, *sys.argv])


def free_port(first):
    """Below the ports that the kernel gives to whoever connects, so that no sender connects with itself."""
    for port in range(first, first + 500):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
                return port
            except OSError:
                pass
    raise SystemExit("no free port")


class Worker:
    """One rank of the prefill engine: a PUSH socket, used by its own thread only."""

    def __init__(self, address):
        self.address = address
        self.work = queue.Queue()
        self.sent = 0
        threading.Thread(target=self.run, daemon=True).start()

    def open(self):
        import zmq

        push = zmq.Context.instance().socket(zmq.PUSH)
        push.setsockopt(zmq.HEARTBEAT_IVL, 100)
        push.setsockopt(zmq.RECONNECT_IVL, 10)
        push.setsockopt(zmq.LINGER, 5000)
        push.connect(self.address)
        return push

    def run(self):
        import msgspec

        class ProxyNotif(msgspec.Struct, tag=True):
            req_id: str

        encode = msgspec.msgpack.Encoder().encode
        push = self.open()
        while True:
            word, done = self.work.get()
            if word is None:
                push.close()
                push = self.open()
                done.set()
                continue
            push.send(encode(ProxyNotif(word)))
            self.sent += 1

    def reconnect(self):
        done = threading.Event()
        self.work.put((None, done))
        done.wait(30)


class Engines:
    def __init__(self, address):
        self.workers = [Worker(address) for _ in range(RANKS)]
        self.last = []
        self.decoded = 0
        self.lock = threading.Lock()
        engines = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                spec = (body.get("kv_transfer_params") or {}).get("disagg_spec")
                answer = {"id": "cmpl-x", "object": "text_completion", "created": 1, "model": "m"}
                choice = {"index": 0, "text": " w", "logprobs": None, "finish_reason": "length"}
                answer["choices"] = [choice]
                answer["usage"] = {"prompt_tokens": len(body["prompt"]), "completion_tokens": 1, "total_tokens": 0}
                if spec:
                    for worker in engines.workers:
                        worker.work.put((spec["req_id"], None))
                    answer["kv_transfer_params"] = {"first_tok": 7}
                    with engines.lock:
                        engines.last = (engines.last + [spec["req_id"]])[-STALE:]
                else:
                    with engines.lock:
                        engines.decoded += 1
                data = json.dumps(answer).encode()
                self.send_response(200)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

        self.servers = []
        for _ in range(2):
            server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
            server.daemon_threads = True
            threading.Thread(target=server.serve_forever, daemon=True).start()
            self.servers.append(server)

    def ports(self):
        return [server.server_address[1] for server in self.servers]


class Proxy:
    def __init__(self, binary, folder, port, notices, engines):
        p, d = engines.ports()
        config = pathlib.Path(folder) / "lmcache.yaml"
        ports = {"init_ports": list(range(1000, 1000 + RANKS)), "alloc_ports": list(range(2000, 2000 + RANKS))}
        receiver = {"host": "127.0.0.1", **ports}
        config.write_text(
            f"host: 127.0.0.1\nport: {port}\nhandshake: lmcache\nlog_level: warning\nprefill: ['127.0.0.1:{p}']\n"
            f"decode: ['127.0.0.1:{d}']\nhealth_check: {{enabled: false}}\nshards: 2\nlmcache:\n  port: {notices}\n"
            f"  receivers: {json.dumps({f'127.0.0.1:{d}': receiver})}\n"
        )
        self.port = port
        self.process = subprocess.Popen([binary, "serve", "--config", config])
        for _ in range(600):
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                return
            except OSError:
                time.sleep(0.05)
        raise SystemExit("pdrelay does not start")

    def metrics(self):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        connection.request("GET", "/metrics")
        page = connection.getresponse().read().decode()
        wanted = ("pdrelay_notice",)
        rows = (line.rsplit(" ", 1) for line in page.splitlines() if line.startswith(wanted))
        return {name: float(value) for name, value in rows}

    def stop(self):
        self.process.terminate()
        self.process.wait(60)


def ask(port, count, wrong):
    """So many requests, by several clients at once."""

    def one(share):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        for _ in range(share):
            body = json.dumps({"prompt": list(range(1, 40)), "max_tokens": 3})
            connection.request("POST", "/v1/completions", body, {"content-type": "application/json"})
            response = connection.getresponse()
            text = response.read()
            if response.status != 200 or b'" w w"' not in text:
                wrong.append((response.status, text[:200]))

    shares = [count // CLIENTS + (i < count % CLIENTS) for i in range(CLIENTS)]
    threads = [threading.Thread(target=one, args=(share,)) for share in shares]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--notices", type=int, default=10_000)
    parser.add_argument("--pdrelay", type=pathlib.Path)
    args = parser.parse_args()
    into_environment()
    import zmq

    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR") or ROOT / "target")
    binary = args.pdrelay or target / "debug" / "pdrelay"
    notices, port = free_port(22_000), free_port(23_000)
    # The senders are there first.
    engines = Engines(f"tcp://127.0.0.1:{notices}")
    requests = -(-args.notices // RANKS)
    lives, rounds = 5, 4
    print(f"libzmq {zmq.zmq_version()}, pyzmq {zmq.pyzmq_version()}; {RANKS} sockets, {lives} lives of pdrelay")
    began, failed, served, wrong = time.monotonic(), 0, 0, []
    with tempfile.TemporaryDirectory() as folder:
        for life in range(lives):
            proxy = Proxy(binary, folder, port, notices, engines)
            stale = 0 if life == 0 else STALE
            here = requests // lives + (life < requests % lives)
            for turn in range(rounds):
                ask(port, here // rounds + (turn < here % rounds), wrong)
                for worker in engines.workers[turn % 2 :: 2]:
                    worker.reconnect()
            served += here
            expected = {
                'pdrelay_notices_total{kind="counted"}': here * RANKS,
                'pdrelay_notices_total{kind="unknown"}': stale,
                'pdrelay_notices_total{kind="unreadable"}': 0,
                'pdrelay_notice_waits_total{outcome="arrived"}': here,
                'pdrelay_notice_waits_total{outcome="timed_out"}': 0,
                "pdrelay_notices_open": 0,
                "pdrelay_notice_senders_refused_total": 0,
            }
            until = time.monotonic() + 20
            while (seen := {k: proxy.metrics().get(k, 0) for k in expected}) != expected and time.monotonic() < until:
                time.sleep(0.2)
            for name, value in expected.items():
                if seen[name] != value:
                    failed += 1
                    print(f"life {life}: {name} is {seen[name]:.0f}, not {value}")
            proxy.stop()
            # What is said while nobody listens, of requests that are over, comes to the next life.
            if life + 1 < lives:
                for i, ticket in enumerate(engines.last):
                    engines.workers[i % RANKS].work.put((ticket, None))
                time.sleep(0.3)
            print(f"life {life}: {here} requests, {here * RANKS} notices, {stale} of another life")
    sent = sum(worker.sent for worker in engines.workers)
    for status, text in wrong[:5]:
        print(f"wrong: {status} {text}")
    print(
        f"{served} requests, {sent} notices sent, {engines.decoded} decoded, {len(wrong)} wrong answers, "
        f"{failed} wrong counts, {time.monotonic() - began:.0f} s"
    )
    return 1 if failed or wrong or engines.decoded != served else 0


if __name__ == "__main__":
    sys.exit(main())
