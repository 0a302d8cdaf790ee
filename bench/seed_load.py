"""The client: as many streamed completions at a time as --concurrency says, each token's arrival timed."""

import asyncio
import dataclasses
import json
import time

GIVE_UP = 600


@dataclasses.dataclass
class Answer:
    """One request, from its first byte sent to the last one read; times in seconds."""

    text: str = ""
    started: float = 0.0
    arrivals: list = dataclasses.field(default_factory=list)
    tokens: int = 0
    prompt_tokens: int = 0
    error: str = ""
    right: bool = False

    @property
    def ended(self):
        return self.arrivals[-1] if self.arrivals else self.started


async def run(address, texts, options, output=None):
    """An answer for each text, in order."""
    turn = asyncio.Semaphore(options.concurrency)

    async def one(text):
        async with turn:
            answer = Answer()
            try:
                await asyncio.wait_for(ask(address, text, output or options.output, answer), GIVE_UP)
            except (OSError, asyncio.TimeoutError, asyncio.IncompleteReadError, ValueError) as error:
                answer.error = f"{type(error).__name__}: {error}"
            return answer

    return list(await asyncio.gather(*(one(text) for text in texts)))


def compare(answers, expected):
    """Marks those that say what the engine that does not split says."""
    for answer, wanted in zip(answers, expected, strict=True):
        answer.right = not answer.error and not wanted.error and bool(wanted.text) and answer.text == wanted.text


async def ask(address, text, tokens, answer):
    body = json.dumps(
        {"model": "llama-3.1-8b-shape", "prompt": text, "max_tokens": tokens, "ignore_eos": True, "temperature": 0.0, "stream": True,
         "stream_options": {"include_usage": True}}
    ).encode()
    reader, writer = await asyncio.open_connection(*address)
    try:
        head = f"POST /v1/completions HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
        answer.started = time.perf_counter()
        writer.write(head.encode() + body)
        status = (await reader.readuntil(b"\r\n")).split()[1]
        headers = (await reader.readuntil(b"\r\n\r\n")).lower()
        chunked = b"transfer-encoding: chunked" in headers
        if status != b"200":
            raise ValueError(f"HTTP {status.decode()}: {(await reader.read(500)).decode(errors='replace')}")
        parts = []
        async for event in events(reader, chunked):
            now = time.perf_counter()
            told = json.loads(event)
            if told.get("error"):
                raise ValueError(str(told["error"])[:300])
            for choice in told.get("choices", []):
                if choice.get("text"):
                    parts.append(choice["text"])
                    answer.arrivals.append(now)
            if told.get("usage"):
                answer.tokens = told["usage"]["completion_tokens"]
                answer.prompt_tokens = told["usage"]["prompt_tokens"]
        answer.text = "".join(parts)
    finally:
        writer.close()


async def events(reader, chunked):
    """The data of each server-sent event up to [DONE]."""
    held = b""
    async for piece in pieces(reader, chunked):
        held += piece
        while b"\n\n" in held:
            event, held = held.split(b"\n\n", 1)
            if not event.startswith(b"data: "):
                continue
            if event == b"data: [DONE]":
                return
            yield event[6:]
    raise ValueError("the stream ended without [DONE]")


async def pieces(reader, chunked):
    while True:
        if not chunked:
            piece = await reader.read(65536)
            if not piece:
                return
            yield piece
            continue
        size = int((await reader.readuntil(b"\r\n")).split(b";")[0], 16)
        piece = (await reader.readexactly(size + 2))[:-2]
        if not size:
            return
        yield piece
