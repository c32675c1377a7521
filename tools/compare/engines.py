"""Fake engines that note what they are asked and answer by rule, all in this process; for xpyd-requests.py.

A word in the prompt (or in a message) makes one role misbehave, e.g. `P-503` or `D-cut`:
NNN answers that status; drop closes the connection unanswered; cut ends an answer in its middle; text answers
what is no JSON; bare leaves out kv_transfer_params; stop ends on the first token.
"""

import http.server
import json
import re
import socket
import sys
import threading
import time

PARAMS = {
    "do_remote_prefill": True,
    "do_remote_decode": False,
    "remote_engine_id": "engine-0",
    "remote_block_ids": [[1, 2, 3]],
    "remote_host": "10.0.0.9",
    "remote_port": 5600,
    "odd": "\u00fc\u2028 1.50",
}


class Engines:
    """Named engines: the first letter is the role, e.g. P0, D0, A0. `seen` is what reached them, in order."""

    def __init__(self, models):
        self.seen, self.lock, self.servers = [], threading.Lock(), {}
        for name, model in models.items():
            server = Server(("127.0.0.1", 0), Handler)
            server.name, server.model, server.engines = name, model, self
            threading.Thread(target=server.serve_forever, daemon=True).start()
            self.servers[name] = server

    def addresses(self):
        return {name: "127.0.0.1:%d" % server.server_port for name, server in self.servers.items()}

    def note(self, entry):
        with self.lock:
            self.seen.append(entry)

    def take(self):
        with self.lock:
            seen, self.seen = self.seen, []
            return seen

    def close(self):
        for server in self.servers.values():
            server.shutdown()
            server.server_close()


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, address):
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, address)


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 60

    def log_message(self, *_):
        pass

    def setup(self):
        super().setup()
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def note(self, body):
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.server.engines.note(
            {"engine": self.server.name, "request": f"{self.command} {self.path}", "headers": headers, "body": body}
        )

    def do_GET(self):
        path = self.path.partition("?")[0]
        # Probes ask for these all the time: they are no part of a client's request.
        if path not in ("/health", "/v1/models"):
            self.note("")
        if path == "/health":
            self.json(200, {"status": "ok", "engine": self.server.name})
        elif path == "/v1/models":
            model = {"id": self.server.model, "object": "model", "created": 1, "owned_by": "fake", "max_model_len": 4096}
            self.json(200, {"object": "list", "data": [model]})
        elif path == "/version":
            self.json(200, {"version": "0.9.9"})
        elif path == "/ping":
            self.answer(200, "text/plain; charset=utf-8", b"pong")
        else:
            self.json(404, {"detail": "Not Found"})

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        self.note(body.decode("utf-8", "replace"))
        path = self.path.partition("?")[0]
        try:
            asked = json.loads(body)
        except ValueError:
            self.json(400, {"error": {"message": "the engine cannot read this", "type": "BadRequestError", "code": 400}})
            return
        self.fault = self.misbehave(body.decode("utf-8", "replace"))
        if self.fault == "drop":
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
        elif self.fault.isdigit():
            error = {"message": f"{self.server.name} says {self.fault}", "type": "FakeError", "param": None}
            self.json(int(self.fault), {"error": {**error, "code": int(self.fault)}})
        elif self.fault == "text":
            self.answer(200, "text/plain", b"this is no JSON")
        elif path in ("/v1/completions", "/v1/chat/completions"):
            self.generate(asked, chat="chat" in path)
        elif path == "/tokenize":
            words = asked["prompt"].split()
            self.json(200, {"count": len(words), "max_model_len": 4096, "tokens": list(range(len(words)))})
        else:
            self.json(200, {"engine": self.server.name, "path": path, "asked": asked})

    def misbehave(self, text):
        found = re.search(rf"\b{self.server.name[0]}-([a-z0-9]+)\b", text)
        return found[1] if found else ""

    def generate(self, asked, chat):
        count = (asked.get("max_completion_tokens") if chat else None) or asked.get("max_tokens") or 4
        if not isinstance(count, int):
            self.json(400, {"error": {"message": "max_tokens is no number", "type": "BadRequestError", "code": 400}})
            return
        count = 1 if self.fault == "stop" else min(count, 64)
        reason = "stop" if self.fault == "stop" else "length"
        tokens = [f" w{i}" for i in range(count)]
        kind = ("chat.completion" if chat else "text_completion") + (".chunk" if chat and asked.get("stream") else "")
        answer = {
            "id": ("chatcmpl-" if chat else "cmpl-") + self.server.name,
            "object": kind,
            "created": 1700000000,
            "model": asked.get("model"),
        }
        usage = {"prompt_tokens": 7, "completion_tokens": count, "total_tokens": 7 + count}
        grant = (asked.get("kv_transfer_params") or {}).get("do_remote_decode") and self.fault != "bare"
        params = {"kv_transfer_params": PARAMS if grant else None}
        if not asked.get("stream"):
            text = {"message": {"role": "assistant", "content": "".join(tokens)}} if chat else {"text": "".join(tokens)}
            choices = [{"index": i, **text, "finish_reason": reason} for i in range(asked.get("n") or 1)]
            self.json(200, {**answer, "choices": choices, "usage": usage, **params}, cut=self.fault == "cut")
            return
        self.head(200, "text/event-stream; charset=utf-8", {"transfer-encoding": "chunked"})
        if chat:
            self.event({**answer, "choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]})
        for i, token in enumerate(tokens):
            if self.fault == "cut" and i == 2:
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)
                return
            text = {"delta": {"content": token}} if chat else {"text": token}
            end = reason if i == count - 1 else None
            self.event({**answer, "choices": [{"index": 0, **text, "finish_reason": end}]})
        if (asked.get("stream_options") or {}).get("include_usage"):
            self.event({**answer, "choices": [], "usage": usage})
        self.chunk(b"data: [DONE]\n\n")
        self.wfile.write(b"0\r\n\r\n")

    def event(self, data):
        self.chunk(b"data: " + json.dumps(data).encode() + b"\n\n")
        # One event, one packet: the originals' chunks are those of the network.
        time.sleep(0.01)

    def chunk(self, data):
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))

    def json(self, status, data, cut=False):
        self.answer(status, "application/json", json.dumps(data).encode(), cut)

    def answer(self, status, kind, data, cut=False):
        self.head(status, kind, {"content-length": str(len(data))})
        if cut:
            self.close_connection = True
        self.wfile.write(data[: len(data) // 2] if cut else data)

    def head(self, status, kind, more):
        lines = [f"HTTP/1.1 {status} X", f"content-type: {kind}"] + [f"{k}: {v}" for k, v in more.items()]
        self.wfile.write("\r\n".join(lines + ["", ""]).encode())
