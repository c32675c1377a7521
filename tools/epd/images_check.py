"""The official `openai` client with images against a server. Prints what it saw; exit code 1 if something was wrong.

usage: images_check.py BASE_URL        env: NAME=tiny
"""

import base64
import os
import struct
import sys
import zlib

import openai

client = openai.OpenAI(base_url=sys.argv[1].rstrip("/") + "/v1", api_key="x", max_retries=0, timeout=120)
MODEL = os.environ.get("NAME", "tiny")
wrong = []


def expect(name, right, seen):
    print(f"  {'ok ' if right else 'BAD'} {name}: {seen}")
    if not right:
        wrong.append(name)


def png(size, shade):
    """A grey square as a data URL."""
    rows = b"".join(b"\0" + bytes([shade]) * size for _ in range(size))

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", size, size, 8, 0, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return "data:image/png;base64," + base64.b64encode(data).decode()


def ask(images, **more):
    parts = [{"type": "image_url", "image_url": {"url": url}} for url in images]
    parts.append({"type": "text", "text": "What is in these pictures?"})
    messages = [{"role": "user", "content": parts}]
    return client.chat.completions.create(model=MODEL, messages=messages, temperature=0, max_tokens=12, **more)


def text(answer):
    return answer.choices[0].message.content


one = ask([png(8, 10)])
expect("one image", one.choices[0].finish_reason == "length" and one.usage.completion_tokens == 12, repr(text(one)[:40]))
expect("the same again", text(ask([png(8, 10)])) == text(one), "the same text")
expect("another image", text(ask([png(8, 11)])) != text(one), "another text")
five = [png(8, 20 + i) for i in range(5)]
many = ask(five)
expect("five images", len(text(many)) > 0, repr(text(many)[:40]))
stream = "".join(
    chunk.choices[0].delta.content or "" for chunk in ask(five, stream=True) if chunk.choices
)
expect("five images, streamed", stream == text(many), "the same text")
large = "data:image/png;base64," + base64.b64encode(os.urandom(6 << 20)).decode()
expect("a large image", len(text(ask([large]))) > 0, f"{len(large)} bytes")
try:
    ask(["gopher://nowhere/a.png"])
    expect("a bad url", False, "was answered")
except openai.APIStatusError as error:
    expect("a bad url", error.status_code == 400, f"{error.status_code} {error.message[:60]}")
plain = client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "hi"}], max_tokens=3)
expect("no image", plain.usage.completion_tokens == 3, repr(text(plain)))
whole = client.completions.create(model=MODEL, prompt="hi", max_tokens=3)
expect("completions", whole.usage.completion_tokens == 3, repr(whole.choices[0].text))
sys.exit(bool(wrong))
