"""What goes wrong in practice, on real engines: odd requests, clients that leave, engines that die.

usage: hard_cases.py RELAY SINGLE PREFILL DECODE [requests] [clients] [engines]     base URLs; default: all three parts

requests  the relay's answer must be the single server's: status, error, text, token ids, logprobs, usage
clients   a client leaves during prefill, decode, a stream: engines stop, and P's KV blocks are free again at once
engines   kills p0 and d0 of engines.sh and starts them again
Standard library only. env: NAME=tiny BLOCKS=256 (KV blocks of P)
"""

import http.client
import json
import os
import pathlib
import random
import re
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request

RELAY, SINGLE, PREFILL, DECODE = [url.rstrip("/") for url in sys.argv[1:5]]
PARTS = sys.argv[5:] or ["requests", "clients", "engines"]
MODEL = os.environ.get("NAME", "tiny")
ENGINES = pathlib.Path(__file__).with_name("engines.sh")
COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
pick = random.Random(time.time_ns())
wrong = []


def expect(name, right, seen=""):
    print(f"  {'ok ' if right else 'BAD'} {name}{': ' if seen != '' else ''}{seen}", flush=True)
    if not right:
        wrong.append(name)


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
    text = urllib.request.urlopen(base + "/metrics", timeout=20).read().decode()
    return sum(float(v) for v in re.findall(r"^" + pattern + r"(?:\{[^}]*\})? (\S+)$", text, re.M))


def until(seconds, condition):
    """Waits for the condition; gives how long it took, or None."""
    began = time.time()
    while time.time() - began < seconds:
        if condition():
            return time.time() - began
        time.sleep(0.05)
    return None


def words(count=40):
    return " ".join(f"w{pick.randrange(10**6)}" for _ in range(count))


def ids(count):
    return [pick.randrange(10, 2000) for _ in range(count)]


def completion(**more):
    return {"model": MODEL, "prompt": words(), "temperature": 0, "max_tokens": 8, "ignore_eos": True, **more}


def chat(**more):
    return {"model": MODEL, "messages": [{"role": "user", "content": words()}], "temperature": 0, "max_tokens": 8, "ignore_eos": True, **more}


# --- requests ---------------------------------------------------------------------------------------------------------

UNSTEADY = {"id", "created", "kv_transfer_params", "prompt_tokens_details", "system_fingerprint", "input"}


def steady(value):
    """Without what differs from call to call; logprobs rounded."""
    if isinstance(value, dict):
        return {k: steady(v) for k, v in value.items() if k not in UNSTEADY}
    if isinstance(value, list):
        return [steady(v) for v in value]
    if isinstance(value, str):  # ids of tool calls; echoes of the whole body
        return re.sub(r"(chatcmpl-tool-|call_)[0-9a-zA-Z]+|'input': '[^']*'", "", value)
    return round(value, 2) if isinstance(value, float) else value


def joined(data):
    """A stream as one answer: how tokens are spread over events depends on timing."""
    events = [line[6:] for line in data.decode().split("\n") if line.startswith("data: ")]
    whole, usage = {}, None
    for event in events[:-1]:
        event = json.loads(event)
        if "error" in event:
            whole["error"] = event["error"]
        usage = event.get("usage") or usage
        for choice in event.get("choices", []):
            it = whole.setdefault(choice["index"], {"text": "", "tools": "", "logprobs": [], "finish": None})
            delta = choice.get("delta") or {}
            it["text"] += choice.get("text") or delta.get("content") or ""
            for call in delta.get("tool_calls") or []:
                it["tools"] += ((call.get("function") or {}).get("name") or "") + ((call.get("function") or {}).get("arguments") or "")
            logprobs = choice.get("logprobs") or {}
            it["logprobs"] += logprobs.get("token_logprobs") or [t["logprob"] for t in logprobs.get("content") or []]
            it["finish"] = choice.get("finish_reason") or it["finish"]
    return [steady(whole), steady(usage), events[-1]]


def meaning(data):
    try:
        return joined(data) if data.startswith(b"data:") else steady(json.loads(data))
    except ValueError:
        return data


TOOL = [{"type": "function", "function": {"name": "look", "parameters": {
    "type": "object", "properties": {"at": {"enum": ["this", "that"]}}, "required": ["at"], "additionalProperties": False}}}]
SCHEMA = {"type": "object", "properties": {"a": {"enum": ["one", "two"]}}, "required": ["a"], "additionalProperties": False}
LONG = {"max_tokens": 64, "ignore_eos": False}


def odd_requests():
    yield "two choices", COMPLETIONS, completion(n=2, temperature=1, seed=7)
    yield "two choices, streamed", COMPLETIONS, completion(n=2, temperature=1, seed=7, stream=True)
    yield "two choices, chat", CHAT, chat(n=2, temperature=1, seed=7)
    yield "two greedy choices", COMPLETIONS, completion(n=2)
    yield "three prompts", COMPLETIONS, completion(prompt=[words(30), words(20), words(5)])
    yield "three prompts, streamed", COMPLETIONS, completion(prompt=[words(30), words(20), words(5)], stream=True)
    yield "two prompts of ids", COMPLETIONS, completion(prompt=[ids(300), ids(4)])
    yield "a list of one prompt", COMPLETIONS, completion(prompt=[words()])
    yield "one token", COMPLETIONS, completion(prompt=[77])
    for name, prompt in (("empty prompt", ""), ("no prompts", []), ("empty ids", [[]]), ("null prompt", None)):
        yield name, COMPLETIONS, completion(prompt=prompt)
    yield "logprobs", COMPLETIONS, completion(logprobs=3)
    yield "logprobs, streamed", COMPLETIONS, completion(logprobs=2, stream=True)
    yield "logprobs, chat", CHAT, chat(logprobs=True, top_logprobs=2)
    yield "top_logprobs alone", CHAT, chat(top_logprobs=2)
    yield "prompt_logprobs", COMPLETIONS, completion(prompt_logprobs=1)
    yield "echo", COMPLETIONS, completion(echo=True)
    yield "echo, streamed", COMPLETIONS, completion(echo=True, stream=True)
    yield "echo, logprobs", COMPLETIONS, completion(echo=True, logprobs=1)
    yield "echo of no tokens", COMPLETIONS, completion(echo=True, max_tokens=0)
    yield "json_object", CHAT, chat(response_format={"type": "json_object"}, **LONG)
    yield "json_schema", CHAT, chat(response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}, **LONG)
    for choice in ("required", "auto", "none", {"type": "function", "function": {"name": "look"}}):
        name = choice if isinstance(choice, str) else "named"
        yield f"tools {name}", CHAT, chat(tools=TOOL, tool_choice=choice, **LONG)
        yield f"tools {name}, streamed", CHAT, chat(tools=TOOL, tool_choice=choice, stream=True, **LONG)
    yield "usage in the stream", COMPLETIONS, completion(stream=True, stream_options={"include_usage": True, "continuous_usage_stats": True})
    yield "stream_options without stream", COMPLETIONS, completion(stream_options={"include_usage": True})
    yield "min_tokens", COMPLETIONS, completion(min_tokens=5, ignore_eos=False)
    yield "min_tokens above max_tokens", COMPLETIONS, completion(min_tokens=50)
    for limit in (0, 1, -1, "x", 10**9):
        yield f"max_tokens {limit}", COMPLETIONS, completion(max_tokens=limit)
    yield "max_completion_tokens", CHAT, chat(max_tokens=9, max_completion_tokens=3)
    yield "n null", COMPLETIONS, completion(n=None)
    yield "no max_tokens", COMPLETIONS, {k: v for k, v in completion().items() if k != "max_tokens"}
    yield "beam search", COMPLETIONS, completion(use_beam_search=True, n=2)
    yield "EOS first", COMPLETIONS, completion(logit_bias={"0": 100}, ignore_eos=False)
    yield "EOS first, chat, streamed", CHAT, chat(logit_bias={"0": 100}, ignore_eos=False, stream=True)
    yield "stop strings", COMPLETIONS, completion(stop=["a", "e", "i"], max_tokens=30)
    yield "stop token first", COMPLETIONS, completion(allowed_token_ids=[50], stop_token_ids=[50], ignore_eos=False)
    yield "client's kv_transfer_params", COMPLETIONS, completion(kv_transfer_params={"do_remote_prefill": True})
    yield "client's kv_transfer_params, chat", CHAT, chat(kv_transfer_params={"do_remote_decode": True})
    yield "bad temperature", COMPLETIONS, completion(temperature=-1)
    yield "no messages", CHAT, {"model": MODEL}
    yield "no model", COMPLETIONS, {k: v for k, v in completion().items() if k != "model"}
    yield "another model", CHAT, chat(model="nope")
    yield "stream as a string", COMPLETIONS, completion(stream="true")
    yield "truncated prompt", COMPLETIONS, completion(truncate_prompt_tokens=20)
    yield "cache_salt", COMPLETIONS, completion(cache_salt="abc")
    yield "the longest prompt", COMPLETIONS, completion(prompt=ids(4095), max_tokens=1)
    yield "a prompt too long by one", COMPLETIONS, completion(prompt=ids(4096), max_tokens=1)
    body = json.dumps(completion())
    yield "max_tokens twice", COMPLETIONS, (body[:-1] + ', "max_tokens": 3}').encode()


def requests():
    for name, path, body in odd_requests():
        seen, right = post(RELAY, path, body), post(SINGLE, path, body)
        same = seen[0] == right[0] and meaning(seen[1]) == meaning(right[1])
        expect(name, same, seen[0])
        if not same:
            print(f"      relay  {str(meaning(seen[1]))[:400]}\n      single {right[0]} {str(meaning(right[1]))[:400]}")


# --- clients ----------------------------------------------------------------------------------------------------------


class Client:
    """A raw connection, to leave when and how one likes."""

    def __init__(self, path, body):
        self.socket = socket.create_connection(place(RELAY), timeout=60)
        raw = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {len(raw)}\r\n\r\n"
        self.socket.sendall(head.encode() + raw)
        self.seen = b""

    def read(self, events):
        while self.seen.count(b"data: ") < events:
            self.more()
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


def running(base):
    return metric(base, "vllm:num_requests_running") + metric(base, "vllm:num_requests_waiting")


def blocks_held():
    """KV blocks in use at P. A small request of its own makes the engine publish the number."""
    post(PREFILL, COMPLETIONS, {"model": MODEL, "prompt": [5, 6], "max_tokens": 1})
    time.sleep(0.2)
    return round(metric(PREFILL, "vllm:kv_cache_usage_perc") * int(os.environ.get("BLOCKS", 256)))


def nothing_left(name):
    stopped = until(10, lambda: not running(DECODE) and not running(PREFILL))
    freed = until(10, lambda: blocks_held() == 0)
    expect(name, stopped is not None and freed is not None,
           f"engines idle after {'never' if stopped is None else f'{stopped:.2f} s'}, P's blocks free after {'never' if freed is None else f'{freed:.2f} s'}")


def clients():
    endless = {"max_tokens": 3000, "stream": True}
    post(RELAY, COMPLETIONS, completion())  # the pair has met
    if until(40, lambda: blocks_held() == 0) is None:
        expect("P holds no blocks before", False)
    for reset in (False, True):
        how = "RST" if reset else "FIN"
        for after in (0.0, 0.02, 0.1, 0.3):
            client = Client(COMPLETIONS, completion(prompt=ids(4000), max_tokens=90, stream=True))
            time.sleep(after)
            client.leave(reset)
            nothing_left(f"left {after} s after a long prompt by {how}")
        client = Client(CHAT, chat(**endless)).read(5)
        client.leave(reset)
        nothing_left(f"left a stream by {how}")
        client = Client(COMPLETIONS, completion(max_tokens=3000))
        until(5, lambda: running(DECODE))
        client.leave(reset)
        nothing_left(f"left before the whole answer by {how}")
    many = [Client(CHAT, chat(**endless)) for _ in range(12)]
    for client in many[::2]:
        client.read(3)
    for client in many:
        client.leave()
    nothing_left("twelve left at once")


# --- engines ----------------------------------------------------------------------------------------------------------


def engines_do(*words):
    subprocess.run([ENGINES, *words], check=True)


def same_text():
    body = completion()
    seen, right = post(RELAY, COMPLETIONS, body), post(SINGLE, COMPLETIONS, body)
    return seen[0] == 200 and meaning(seen[1]) == meaning(right[1])


def fails_well(name):
    began = time.time()
    status, data = post(RELAY, COMPLETIONS, completion())
    error = json.loads(data).get("error") or {}
    expect(name, status in (502, 503) and bool(error.get("message")), f"{status} after {time.time() - began:.2f} s, {error}")


def serves_again(name):
    took = until(60, lambda: post(RELAY, COMPLETIONS, completion())[0] == 200)
    expect(f"{name} is back: served again", took is not None, f"after {took or 0:.1f} s")
    expect(f"{name} is back: the same text", same_text())


def engines():
    post(RELAY, COMPLETIONS, completion())
    waiting = Client(COMPLETIONS, completion(max_tokens=3500))
    client = Client(CHAT, chat(max_tokens=3500, stream=True)).read(5)
    engines_do("crash", "d0")
    broken, last = client.rest(), client.seen.strip().split(b"data: ")[-1]
    expect("D dies in a stream: an error event, and the connection broken", broken and b'"error"' in last, last[:200])
    waiting.rest()
    expect("D dies before its answer: an error", b" 502 " in waiting.seen[:20] or b" 503 " in waiting.seen[:20], waiting.seen[-160:])
    fails_well("without D")
    engines_do("up", "d0")
    client = Client(COMPLETIONS, completion(prompt=ids(3000), stream=True))
    time.sleep(0.3)
    client.leave()
    nothing_left("left on the first contact")
    serves_again("D")
    engines_do("crash", "p0")
    fails_well("without P")
    fails_well("without P, again")
    engines_do("up", "p0")
    serves_again("P")


for part in PARTS:
    {"requests": requests, "clients": clients, "engines": engines}[part]()
print(f"  {', '.join(PARTS)}: {'all as it should be' if not wrong else 'WRONG: ' + '; '.join(wrong)}")
sys.exit(bool(wrong))
