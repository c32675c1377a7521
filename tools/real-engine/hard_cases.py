"""What goes wrong in practice, on real engines: odd requests. (Clients that leave and engines that die: failures.py.)

usage: hard_cases.py RELAY SINGLE     base URLs

The relay's answer must be the single server's: status, error, text, token ids, logprobs, usage.
Standard library only. env: NAME=tiny
"""

import json
import re
import sys

from forwarder import CHAT, COMPLETIONS, chat, completion, expect, ids, post, words, wrong

RELAY, SINGLE = [url.rstrip("/") for url in sys.argv[1:3]]

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


for name, path, body in odd_requests():
    seen, right = post(RELAY, path, body), post(SINGLE, path, body)
    same = seen[0] == right[0] and meaning(seen[1]) == meaning(right[1])
    expect(name, same, seen[0])
    if not same:
        print(f"      relay  {str(meaning(seen[1]))[:400]}\n      single {right[0]} {str(meaning(right[1]))[:400]}")
print(f"  odd requests: {'all as it should be' if not wrong else 'WRONG: ' + '; '.join(wrong)}")
sys.exit(bool(wrong))
