"""The official `openai` client against a server. Prints what it saw; exit code 1 if something was wrong.

usage: openai_check.py BASE_URL [METRICS_URL...]     METRICS_URL: engines whose running requests must end when a client leaves
env: NAME=tiny
"""

import os
import re
import sys
import time
import urllib.request

import openai

BASE = sys.argv[1].rstrip("/")
ENGINES = [url.rstrip("/") for url in sys.argv[2:]]
MODEL = os.environ.get("NAME", "tiny")
client = openai.OpenAI(base_url=BASE + "/v1", api_key="x", max_retries=0, timeout=120)
messages = [{"role": "user", "content": f"Write def main with asyncio and return the socket buffer {time.time_ns()}"}]
ALL = {"ignore_eos": True}
wrong = []


def expect(name, right, seen):
    print(f"  {'ok ' if right else 'BAD'} {name}: {seen}")
    if not right:
        wrong.append(name)


def running():
    total = 0
    for url in ENGINES:
        text = urllib.request.urlopen(url + "/metrics", timeout=20).read().decode()
        total += sum(float(v) for v in re.findall(r"^vllm:num_requests_running\{[^}]*\} ([0-9.]+)", text, re.M))
    return total


names = [model.id for model in client.models.list().data]
expect("models", MODEL in names, names)

whole = client.chat.completions.create(model=MODEL, messages=messages, temperature=0, max_tokens=24, extra_body=ALL)
text = whole.choices[0].message.content
expect("chat", whole.usage.completion_tokens == 24 and whole.choices[0].finish_reason == "length", repr(text[:50]))

pieces, usage, finish, first, began = [], None, None, None, time.time()
for chunk in client.chat.completions.create(
    model=MODEL, messages=messages, temperature=0, max_tokens=24, stream=True, stream_options={"include_usage": True}, extra_body=ALL
):
    usage = chunk.usage or usage
    if chunk.choices:
        finish = chunk.choices[0].finish_reason or finish
        if chunk.choices[0].delta.content:
            first = first or time.time() - began
            pieces.append(chunk.choices[0].delta.content)
expect(
    "chat stream: the same text, usage",
    "".join(pieces) == text and finish == "length" and usage.completion_tokens == 24,
    f"{len(pieces)} pieces, first after {first:.3f} s",
)

prompt = f"import socket {time.time_ns()}"
whole = client.completions.create(model=MODEL, prompt=prompt, temperature=0, max_tokens=16, extra_body=ALL)
stream = client.completions.create(model=MODEL, prompt=prompt, temperature=0, max_tokens=16, stream=True, extra_body=ALL)
text = "".join(chunk.choices[0].text for chunk in stream if chunk.choices)
expect("completion and its stream: the same text", text == whole.choices[0].text and text != "", repr(text[:50]))

raw = client.chat.completions.with_raw_response.create(
    model=MODEL, messages=messages, max_tokens=4, n=2, logprobs=True, top_logprobs=2, temperature=1, seed=1,
    extra_body=ALL, extra_headers={"X-Request-Id": "check-42"},
)
answer = raw.parse()
expect("n=2", len(answer.choices) == 2 and {c.index for c in answer.choices} == {0, 1}, len(answer.choices))
expect("logprobs", all(len(c.logprobs.content) == 4 for c in answer.choices), "4 tokens each")
expect("X-Request-Id", raw.headers.get("x-request-id") == "check-42", raw.headers.get("x-request-id"))

batch = client.completions.create(model=MODEL, prompt=[prompt, "def f(x):"], temperature=0, max_tokens=8, extra_body=ALL)
expect("two prompts in one request", len(batch.choices) == 2 and batch.choices[0].text == text[: len(batch.choices[0].text)], len(batch.choices))

stream = client.chat.completions.create(model=MODEL, messages=messages, max_tokens=3000, stream=True, extra_body=ALL)
for _ in range(5):
    next(iter(stream))
before = running()
stream.close()
left = time.time()
while running() and time.time() - left < 10:
    time.sleep(0.02)
expect("the client leaves a stream: the engine stops", not running(), f"running {before:.0f} before, {running():.0f} after {time.time() - left:.2f} s")

for name, kind, call in (
    ("unknown model", openai.NotFoundError, lambda: client.chat.completions.create(model="nope", messages=messages)),
    ("prompt too long", openai.BadRequestError, lambda: client.completions.create(model=MODEL, prompt="a b " * 40000, max_tokens=5)),
    ("wrong type", openai.BadRequestError, lambda: client.chat.completions.create(model=MODEL, messages="x")),
    ("negative max_tokens", openai.BadRequestError, lambda: client.completions.create(model=MODEL, prompt="x", max_tokens=-1)),
):
    try:
        call()
        expect(name, False, "no error")
    except openai.APIStatusError as error:
        told = error.body.get("message") if isinstance(error.body, dict) else None
        expect(name, type(error) is kind and bool(told), f"{type(error).__name__} {error.status_code} {str(told)[:90]!r}")
print(f"  openai client {openai.__version__}: {'all as it should be' if not wrong else 'WRONG: ' + ', '.join(wrong)}")
sys.exit(bool(wrong))
