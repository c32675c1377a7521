"""What the checks of real engines share: requests, clients that leave, a forwarder that knows and delays. Standard library only."""

import http.client
import json
import os
import random
import re
import socket
import threading
import time
import urllib.parse
import urllib.request

MODEL = os.environ.get("NAME", "tiny")
COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
pick = random.Random(time.time_ns())
wrong = []


def expect(name, right, seen=""):
    print(f"  {'ok ' if right else 'BAD'} {name}{': ' if seen != '' else ''}{seen}", flush=True)
    if not right:
        wrong.append(name)


class Starved:
    """Knows when this process was left without a CPU for over a second: a thread asked for 20 ms of sleep. The virtual machine was
    paused, or its kernel let others run (see README, sched_yield). What is timed across it counts all the same; it is only said.
    """

    def __init__(self, least=1.0):
        self.spells, self.least = [], least
        threading.Thread(target=self.watch, daemon=True).start()

    def watch(self):
        last = time.time()
        while True:
            time.sleep(0.02)
            now = time.time()
            if now - last > self.least:
                self.spells.append((last, now))
            last = now

    def seconds(self, begin, end):
        """From `begin` to `end`, after having said how much of it was such a spell."""
        time.sleep(0.05)  # the watch may be as late as we are
        lost = sum(max(0.0, min(end, to) - max(begin, at)) for at, to in self.spells)
        if lost:
            print(f"  (for {lost:.2f} of these {end - begin:.2f} s, this process was left without a CPU)", flush=True)
        return end - begin


starved = Starved()


def place(base):
    url = urllib.parse.urlsplit(base)
    return url.hostname, url.port


def post(base, path, body, timeout=120):
    connection = http.client.HTTPConnection(*place(base), timeout=timeout)
    try:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        connection.request("POST", path, raw, {"content-type": "application/json"})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def metric(base, pattern):
    text = urllib.request.urlopen(base + "/metrics", timeout=120).read().decode()
    return sum(float(v) for v in re.findall(r"^" + pattern + r"(?:\{[^}]*\})? (\S+)$", text, re.M))


def until(seconds, condition, every=0.05):
    """Waits for the condition; gives how long it took, or None."""
    began = time.time()
    while time.time() - began < seconds:
        if condition():
            return time.time() - began
        time.sleep(every)
    return None


def words(count=40):
    return " ".join(f"w{pick.randrange(10**6)}" for _ in range(count))


def ids(count):
    return [pick.randrange(10, 2000) for _ in range(count)]


def completion(**more):
    return {"model": MODEL, "prompt": words(), "temperature": 0, "max_tokens": 8, "ignore_eos": True, **more}


def chat(**more):
    return {"model": MODEL, "messages": [{"role": "user", "content": words()}], "temperature": 0, "max_tokens": 8, "ignore_eos": True, **more}


class Client:
    """A raw connection, to leave when and how one likes."""

    def __init__(self, base, path, body):
        self.socket = socket.create_connection(place(base), timeout=60)
        raw = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {len(raw)}\r\n\r\n"
        self.socket.sendall(head.encode() + raw)
        self.seen = b""

    def read(self, events):
        while self.seen.count(b"data: ") < events:
            if not self.more():
                raise RuntimeError(f"the stream ended early: {self.seen[-300:]!r}")
        return self

    def more(self):
        piece = self.socket.recv(65536)
        self.seen += piece
        return piece

    def rest(self):
        """All until the end; True if the connection broke off instead of ending the answer."""
        try:
            while self.more():
                pass
        except ConnectionError:
            return True
        return not self.seen.endswith(b"0\r\n\r\n")

    def leave(self, reset=False):
        if reset:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.socket.close()


class Forwarder:
    """A TCP forwarder before an engine. It knows when a request went in and when the answer came out, and can hold either.

    Ends are passed on as they come (a FIN as a FIN, for each direction), and while it is `down` its port refuses
    connections, as the engine's own would.
    """

    def __init__(self, engine):
        self.engine = place(engine)
        self.asked = threading.Event()  # a POST went in (at `asked_at`)
        self.answered = threading.Event()  # the first byte of its answer came out
        self.asked_at = self.answered_at = 0.0
        self.spans = []  # of all POSTs: asked and answered at
        self.on_answer = None  # called before that byte is passed on
        self.hold_request = self.hold_answer = 0.0  # seconds
        self.listener = None
        self.port = 0
        self.up()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def up(self):
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", self.port))
        listener.listen(64)
        self.port = listener.getsockname()[1]
        self.listener = listener
        threading.Thread(target=self.accept, args=(listener,), daemon=True).start()

    def down(self):
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()

    def fresh(self):
        """Forgets what it has seen."""
        self.on_answer, self.hold_request, self.hold_answer = None, 0.0, 0.0
        self.asked.clear()
        self.answered.clear()

    def accept(self, listener):
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            try:
                engine = socket.create_connection(self.engine, timeout=5)
            except OSError:
                client.close()
                continue
            engine.settimeout(None)
            for one in client, engine:
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            shared = {"post": False, "open": 2}
            threading.Thread(target=self.pump, args=(client, engine, True, shared), daemon=True).start()
            threading.Thread(target=self.pump, args=(engine, client, False, shared), daemon=True).start()

    def pump(self, from_, to, asking, shared):
        try:
            while piece := from_.recv(1 << 20):
                if asking and piece.startswith(b"POST "):
                    shared["post"] = True
                    self.asked_at = time.time()
                    self.asked.set()
                    time.sleep(self.hold_request)
                elif not asking and shared["post"]:
                    shared["post"] = False
                    self.answered_at = time.time()
                    self.spans.append((self.asked_at, self.answered_at))
                    if self.on_answer:
                        self.on_answer()
                    self.answered.set()
                    time.sleep(self.hold_answer)
                to.sendall(piece)
            to.shutdown(socket.SHUT_WR)
        except OSError:
            for one in from_, to:
                try:
                    one.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass
        shared["open"] -= 1
        if not shared["open"]:
            from_.close()
            to.close()
