"""Conversations through `pdrelay multiturn`, turn by turn, against a single server, and proof of where the KV came from.

usage: multiturn.py WHAT RELAY SINGLE PREFILL_ENGINE     WHAT: three, edited, chat, before-restart, after-restart

Prompts are token ids, and answers are taken as token ids: KV is of tokens, and text may be cut into others when it is read
again. Answers are whole ones: in streams, vLLM 0.32 says nothing of where D keeps its KV. On the prefill engine,
vllm:prompt_tokens_by_source_total says what came by KV transfer.
env: NAME=tiny FIRST=300 (tokens of the first prompt) OUT=120 VOCABULARY=2048 RT (where a conversation waits for a restart)
"""

import http.client
import json
import os
import random
import re
import sys
import time
import urllib.parse
import urllib.request

WHAT, RELAY, SINGLE, PREFILL = [part.rstrip("/") for part in sys.argv[1:]]
E = os.environ.get
MODEL, FIRST, OUT = E("NAME", "tiny"), int(E("FIRST", 300)), int(E("OUT", 120))
VOCABULARY = int(E("VOCABULARY", 2048))
SAVED = os.path.join(E("RT", "."), "conversation.json")


def post(base, path, body):
    url = urllib.parse.urlsplit(base)
    connection = http.client.HTTPConnection(url.hostname, url.port, timeout=300)
    try:
        connection.request("POST", path, json.dumps(body), {"content-type": "application/json"})
        answer = connection.getresponse()
        data = answer.read()
        if answer.status != 200:
            raise SystemExit(f"{base}{path}: {answer.status} {data[:300]!r}")
        return data.decode()
    finally:
        connection.close()


def transferred():
    """Prompt tokens of P that came by KV transfer."""
    text = urllib.request.urlopen(PREFILL + "/metrics", timeout=20).read().decode()
    pattern = r'^vllm:prompt_tokens_by_source_total\{[^}]*source="external_kv_transfer"[^}]*\} (\S+)'
    return sum(float(value) for value in re.findall(pattern, text, re.M))


def settled():
    """The same, once it no longer moves: the engine counts a moment after it answers."""
    last = transferred()
    for _ in range(20):
        time.sleep(0.2)
        now = transferred()
        if now == last:
            return now
        last = now
    return last


class Talk:
    def __init__(self, name, ids):
        self.name, self.ids = name, ids

    def turn(self, stream=False):
        """One answer; the tokens that P had from D for it."""
        body = {"model": MODEL, "prompt": self.ids, "temperature": 0, "max_tokens": OUT, "ignore_eos": True, "return_token_ids": True}
        before = settled()
        asked = {**body, "conversation_id": self.name, "stream": stream}
        data = post(RELAY, "/v1/completions", asked)
        if "kv_transfer_params" in re.sub(r'"kv_transfer_params":null', "", data) or "remote_block" in data:
            raise SystemExit("BAD the client was shown block ids")
        if stream:
            events = [json.loads(line[6:]) for line in data.split("\n") if line.startswith("data: {")]
            said = [id for event in events for choice in event["choices"] for id in choice.get("token_ids") or []]
        else:
            said = json.loads(data)["choices"][0]["token_ids"]
        right = json.loads(post(SINGLE, "/v1/completions", body))["choices"][0]["token_ids"]
        moved = settled() - before
        print(f"  {self.name}: {len(self.ids)} prompt tokens, {moved:.0f} of them came to P from D; {'the same' if said == right else 'ANOTHER'} text")
        if said != right:
            raise SystemExit(f"BAD relay {said}\n    single {right}")
        self.ids = self.ids + said
        return moved


def fresh(count):
    return [random.randrange(10, VOCABULARY) for _ in range(count)]


def expect(holds, what):
    if not holds:
        raise SystemExit(f"BAD {what}")


def three():
    talk = Talk(f"three-{time.time_ns()}", fresh(FIRST))
    expect(talk.turn() == 0, "a first turn has nothing to reuse")
    for number in (2, 3):
        talk.ids += fresh(40)
        expect(talk.turn() > 0, f"turn {number} came to P without KV transfer")
    # vLLM 0.32 says in a stream nothing of where its KV is: the text must be right all the same.
    talk = Talk(f"streamed-{time.time_ns()}", fresh(FIRST))
    for _ in range(2):
        talk.turn(stream=True)
        talk.ids += fresh(40)


def edited():
    talk = Talk(f"edited-{time.time_ns()}", fresh(FIRST))
    talk.turn()
    talk.ids = [talk.ids[0] % (VOCABULARY - 20) + 11, *talk.ids[1:], *fresh(40)]
    expect(talk.turn() == 0, "an edited history was reused")
    talk.ids += fresh(40)
    expect(talk.turn() > 0, "the conversation did not go on from there")


def chat():
    # The tiny model's own text is cut into other tokens when it is read again: so an answer that is not its own stands
    # in nobody's history, and what is shown here is only that the answer is whole.
    messages = [{"role": "user", "content": " ".join(f"word{n}" for n in range(120))}]
    body = {"model": MODEL, "temperature": 0, "max_tokens": OUT, "ignore_eos": True, "messages": messages}
    data = json.loads(post(RELAY, "/v1/chat/completions", {**body, "conversation_id": f"chat-{time.time_ns()}"}))
    right = json.loads(post(SINGLE, "/v1/chat/completions", body))
    expect(data["choices"][0]["message"]["content"] == right["choices"][0]["message"]["content"], "another text")
    expect(data["usage"]["completion_tokens"] == OUT, "usage is lost")
    expect(not data.get("kv_transfer_params"), "the client was shown block ids")
    print(f"  chat: {data['usage']['prompt_tokens']} prompt tokens, the same text, usage is there")


def before_restart():
    talk = Talk(f"restart-{time.time_ns()}", fresh(FIRST))
    talk.turn()
    json.dump([talk.name, talk.ids], open(SAVED, "w"))


def after_restart():
    talk = Talk(*json.load(open(SAVED)))
    talk.ids += fresh(40)
    expect(talk.turn() == 0, "blocks of a dead engine were read")
    talk.ids += fresh(40)
    expect(talk.turn() > 0, "the conversation did not go on from there")


{"three": three, "edited": edited, "chat": chat, "before-restart": before_restart, "after-restart": after_restart}[WHAT]()
