"""Is an answer right? Asked of every proxy before it is measured: one that answers wrongly fast is not fast.

The simulated engine's text depends on the prompt alone, so what comes through a proxy has to be, to the byte, the text that the
engine gives when it is asked directly; whole and streamed, small and large."""

import http.client
import json

from .engine import MODEL

LARGE = "many words " * (100 << 10)


def cases():
    image = "data:image/png;base64," + "iVBORw0KGgoAAAANSUhEUgAA" * 4096
    chat = [{"role": "user", "content": [{"type": "text", "text": "look"}, {"type": "image_url", "image_url": {"url": image}}]}]
    base = {"model": MODEL, "max_tokens": 9, "temperature": 0}
    return {
        "whole": ("/v1/completions", {**base, "prompt": "one two three"}),
        "stream": ("/v1/completions", {**base, "prompt": "one two three", "stream": True}),
        "1 MB": ("/v1/completions", {**base, "prompt": LARGE}),
        "chat": ("/v1/chat/completions", {**base, "messages": [{"role": "user", "content": "hello"}], "stream": True}),
        "image": ("/v1/chat/completions", {**base, "messages": chat}),
    }


def ask(port, path, body):
    link = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        link.request("POST", path, json.dumps(body), {"content-type": "application/json"})
        answer = link.getresponse()
        return answer.status, answer.read().decode(errors="replace")
    finally:
        link.close()


def tokens(port, source=""):
    """Prompt tokens that an engine has worked on, as its /metrics say; of one source, or of all."""
    link = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    link.request("GET", "/metrics", headers={"connection": "close"})
    text = link.getresponse().read().decode()
    link.close()
    name = "vllm:prompt_tokens_by_source_total" if source else "vllm:prompt_tokens_total"
    lines = [line for line in text.splitlines() if line.startswith(name) and source in line]
    if not lines:
        raise SystemExit(f"the engine's /metrics has no {name} {source}")
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines)


def legs(peer):
    """Did P work on a prompt, and did D take P's KV for it, when this proxy was asked once?"""
    p, d = peer.engines.prefill, peer.engines.decode
    before = tokens(p), tokens(d, "external_kv_transfer")
    ask(peer.port, *cases()["whole"])
    return {"asks_prefill": tokens(p) > before[0], "hands_kv_over": tokens(d, "external_kv_transfer") > before[1]}


def text_of(body, stream):
    """All choices' text; a stream has to end as streams do."""

    def one(value):
        choice = (value.get("choices") or [{}])[0]
        message = choice.get("delta") or choice.get("message") or {}
        return choice.get("text") or message.get("content") or ""

    if not stream:
        return one(json.loads(body))
    events = [line[6:] for line in body.splitlines() if line.startswith("data: ")]
    if not events or events[-1] != "[DONE]":
        raise ValueError("the stream has no [DONE]")
    return "".join(one(json.loads(event)) for event in events[:-1])


def wrong(peer, direct):
    """What is wrong with its answers, by case; nothing: all are right."""
    found = []
    for name, (path, body) in cases().items():
        try:
            status, said = ask(peer.port, path, body)
            expected_status, expected = ask(direct.port, path, body)
            if expected_status != 200:
                raise SystemExit(f"the engine itself answers {expected_status} to {name}: {expected[:300]}")
            stream = body.get("stream", False)
            if status != 200:
                found.append(f"{name}: {status} {said[:160]}")
            elif text_of(said, stream) != text_of(expected, stream):
                found.append(f"{name}: not the engine's text")
        except (OSError, ValueError, http.client.HTTPException) as error:
            found.append(f"{name}: {error!r}")
    return found
