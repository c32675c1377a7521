"""Greedy text through the relay against the text of a single server, and proof that the KV moved.

usage: same_text.py RELAY SINGLE DECODE_ENGINE...     base URLs; standard library only

Each case is a prompt never sent before: completions (text and token ids) and chat (text and parts), streamed and not,
shorter than a KV block and up to many blocks. First one at a time, then CONC at once. Text, token ids, finish reason and
usage must be those of the single server; on the decode engines, every prompt token must have come by KV transfer.
(vLLM computes a prompt of a single token itself, KV or not: no case here is that short.)
env: NAME=tiny N=16 (concurrent cases) CONC=8 OUT=24 VOCABULARY=2048 LENGTHS=2,127,128,129,256,1000,3000 SEED (default: the clock)
     HEADERS='NAME: VALUE' (sent to the relay, too)   SOURCE=external_kv_transfer (where every prompt token must come from)
"""

import concurrent.futures
import http.client
import json
import os
import random
import re
import sys
import time
import urllib.parse
import urllib.request

RELAY, SINGLE, *DECODE = [url.rstrip("/") for url in sys.argv[1:]]
E = os.environ.get
MODEL, N, CONC, OUT = E("NAME", "tiny"), int(E("N", 16)), int(E("CONC", 8)), int(E("OUT", 24))
VOCABULARY = int(E("VOCABULARY", 2048))
LENGTHS = [int(n) for n in E("LENGTHS", "2,127,128,129,256,1000,3000").split(",")]
SEED = int(E("SEED", time.time_ns()))
HEADERS = dict([E("HEADERS").split(": ", 1)]) if E("HEADERS") else {}
SOURCE = E("SOURCE", "external_kv_transfer")
pick = random.Random(SEED)
WORDS = "alpha beta return import class def async await socket buffer queue proxy token cache block wörld 你好 \" \\ \n".split(" ")


def post(base, path, body):
    url = urllib.parse.urlsplit(base)
    connection = http.client.HTTPConnection(url.hostname, url.port, timeout=300)
    try:
        more = HEADERS if base == RELAY else {}
        connection.request("POST", path, json.dumps(body), {"content-type": "application/json", **more})
        answer = connection.getresponse()
        data = answer.read()
        if answer.status != 200:
            raise RuntimeError(f"{base}{path}: {answer.status} {data[:300]!r}")
        return data
    finally:
        connection.close()


def whole(data):
    """(text, token ids, finish reason, prompt tokens, completion tokens)"""
    answer = json.loads(data)
    choice = answer["choices"][0]
    text = choice["text"] if "text" in choice else choice["message"]["content"]
    usage = answer["usage"]
    return text, choice["token_ids"], choice["finish_reason"], usage["prompt_tokens"], usage["completion_tokens"]


def streamed(data):
    events = [line[6:] for line in data.decode().split("\n") if line.startswith("data: ")]
    if events[-1] != "[DONE]":
        raise RuntimeError("the stream has no [DONE]")
    text, ids, finish, usage = "", [], None, None
    for event in map(json.loads, events[:-1]):
        if "error" in event:
            raise RuntimeError(f"an error in the stream: {event}")
        usage = event.get("usage") or usage
        for choice in event["choices"]:
            text += (choice["text"] if "text" in choice else choice["delta"].get("content")) or ""
            ids += choice.get("token_ids") or []
            finish = choice["finish_reason"] or finish
    return text, ids, finish, usage["prompt_tokens"], usage["completion_tokens"]


def words(count):
    return " ".join(pick.choice(WORDS) + str(pick.randrange(10**5)) for _ in range(count))


def cases(lengths):
    base = {"model": MODEL, "temperature": 0, "max_tokens": OUT, "ignore_eos": True, "return_token_ids": True}
    made = []
    for tokens in lengths:
        about = max(1, tokens // 6)
        made += [
            ("completions", {**base, "prompt": [pick.randrange(10, VOCABULARY) for _ in range(tokens)]}),
            ("completions", {**base, "prompt": words(about)}),
            ("chat/completions", {**base, "messages": [{"role": "user", "content": words(about)}]}),
            ("chat/completions", {**base, "messages": [
                {"role": "system", "content": words(3)},
                {"role": "user", "content": [{"type": "text", "text": words(about)}]},
            ]}),
        ]
    return made


def prompt_tokens():
    """By source, summed over the decode engines."""
    sums = {}
    for url in DECODE:
        text = urllib.request.urlopen(url + "/metrics", timeout=20).read().decode()
        for labels, value in re.findall(r"^vllm:prompt_tokens_by_source_total\{([^}]*)\} (\S+)", text, re.M):
            source = re.search(r'source="([^"]*)"', labels)[1]
            sums[source] = sums.get(source, 0) + float(value)
    return sums


def one(case):
    api, body, stream = case
    asked = {**body, "stream": True, "stream_options": {"include_usage": True}} if stream else body
    data = post(RELAY, "/v1/" + api, asked)
    seen = streamed(data) if stream else whole(data)
    return seen, whole(post(SINGLE, "/v1/" + api, body))


def run(name, todo, threads):
    """Runs the cases; gives how many were wrong and the prompt tokens of all."""
    before, wrong, tokens, shapes = prompt_tokens(), 0, 0, {}
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        for (api, body, stream), done in zip(todo, [pool.submit(one, case) for case in todo]):
            shape = f"{api}{' streamed' if stream else ''}"
            shapes.setdefault(shape, [0, 0])[1] += 1
            try:
                seen, right = done.result()
            except Exception as error:
                wrong += 1
                print(f"  BAD {shape}: {error}")
                continue
            tokens += right[3]
            if seen == right and len(seen[1]) == OUT:
                shapes[shape][0] += 1
            else:
                wrong += 1
                print(f"  BAD {shape}: {str(body)[:80]}...\n      relay  {seen}\n      single {right}")
    for shape, (same, all) in shapes.items():
        print(f"  {name}: {shape}: {same} of {all} the same as the single server")
    for _ in range(50):  # the engine counts a moment after it answers
        after = prompt_tokens()
        moved = {source: int(after[source] - before.get(source, 0)) for source in after}
        if sum(moved.values()) >= tokens:
            break
        time.sleep(0.1)
    print(f"  {name}: {tokens} prompt tokens; on the decode engines by source: {moved}")
    if moved.get(SOURCE) != tokens or any(n for source, n in moved.items() if source != SOURCE):
        print(f"  BAD not every prompt token came by {SOURCE}")
        wrong += 1
    return wrong


alone = [(api, body, stream) for stream in (False, True) for api, body in cases(LENGTHS)]
many = [(api, body, pick.random() < 0.5) for api, body in cases([pick.choice(LENGTHS) for _ in range(N)])][:N]
pick.shuffle(many)
bad = run("one at a time", alone, 1) + run(f"{CONC} at once", many, CONC)
print(f"  {len(alone) + len(many)} prompts, seed {SEED}: {'all as it should be' if not bad else f'{bad} WRONG'}")
sys.exit(bool(bad))
