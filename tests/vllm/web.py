"""HTTP towards engines, sidecars and the router; only the standard library."""

import dataclasses
import http.client
import json
import time
import urllib.parse


@dataclasses.dataclass
class Answer:
    """What came back for one completion or chat."""

    status: int
    text: str
    usage: dict
    headers: dict
    raw: str
    error: str = ""
    ttft: float = 0.0
    seconds: float = 0.0

    def same_as(self, other):
        """Text and token counts are equal, and both are answers."""
        return self.good and other.good and self.text == other.text and counts(self.usage) == counts(other.usage)

    @property
    def good(self):
        return self.status == 200 and not self.error

    def brief(self):
        return repr(self.text) if self.good else f"HTTP {self.status} {(self.error or self.raw)[:200]!r}"


def counts(usage):
    return {key: (usage or {}).get(key) for key in ("prompt_tokens", "completion_tokens", "total_tokens")}


def connect(url, timeout):
    parts = urllib.parse.urlsplit(url)
    return http.client.HTTPConnection(parts.hostname, parts.port, timeout=timeout)


def request(method, url, path, body=None, headers=None, timeout=30):
    """(status, headers, text); status 0 when there was no answer."""
    connection = connect(url, timeout)
    try:
        data = None if body is None else json.dumps(body)
        connection.request(method, path, data, {"Content-Type": "application/json", **(headers or {})})
        reply = connection.getresponse()
        return reply.status, {k.lower(): v for k, v in reply.getheaders()}, reply.read().decode(errors="replace")
    except OSError as error:
        return 0, {}, f"{type(error).__name__}: {error}"
    except http.client.HTTPException as error:
        return 0, {}, f"{type(error).__name__}: {error}"
    finally:
        connection.close()


def get_json(url, path, timeout=10):
    """The document, or None."""
    status, _, text = request("GET", url, path, timeout=timeout)
    try:
        return json.loads(text) if status in (200, 503) else None
    except ValueError:
        return None


def body_of(text, chat=False, stream=False, max_tokens=16, **more):
    body = {"model": "tiny", "max_tokens": max_tokens, "temperature": 0, **more}
    body.update({"messages": [{"role": "user", "content": text}]} if chat else {"prompt": text})
    if stream:
        body.update(stream=True, stream_options={"include_usage": True})
    return body


def path_of(chat):
    return "/v1/chat/completions" if chat else "/v1/completions"


def complete(url, text, chat=False, stream=False, headers=None, timeout=120, **more):
    """One request from beginning to end."""
    start = time.monotonic()
    connection = connect(url, timeout)
    try:
        body = json.dumps(body_of(text, chat, stream, **more))
        connection.request("POST", path_of(chat), body, {"Content-Type": "application/json", **(headers or {})})
        reply = connection.getresponse()
        head = {k.lower(): v for k, v in reply.getheaders()}
        if reply.status == 200 and stream:
            answer = read_stream(reply, head, chat, start)
        else:
            answer = read_whole(reply.status, head, reply.read().decode(errors="replace"), chat)
    except (OSError, http.client.HTTPException) as error:
        answer = Answer(0, "", {}, {}, "", f"{type(error).__name__}: {error}")
    finally:
        connection.close()
    answer.seconds = time.monotonic() - start
    return answer


def read_whole(status, head, raw, chat):
    try:
        document = json.loads(raw)
    except ValueError:
        return Answer(status, "", {}, head, raw, "not JSON")
    if status != 200 or "choices" not in document:
        return Answer(status, "", {}, head, raw, json.dumps(document.get("error", document)))
    choice = document["choices"][0]
    text = choice["message"]["content"] if chat else choice["text"]
    return Answer(status, text, document.get("usage") or {}, head, raw)


def events(reply):
    """The data of each server-sent event, as it comes."""
    for line in reply:
        if line.startswith(b"data: "):
            yield line[6:].decode().strip()


def delta(document, chat):
    return "".join(
        (choice["delta"].get("content") or "") if chat else choice["text"] for choice in document.get("choices", [])
    )


def read_stream(reply, head, chat, start):
    text, usage, error, ttft, done, raw = "", {}, "", 0.0, False, []
    for data in events(reply):
        raw.append(data)
        if data == "[DONE]":
            done = True
            break
        document = json.loads(data)
        if "error" in document:
            error = json.dumps(document["error"])
            continue
        piece = delta(document, chat)
        if piece and not ttft:
            ttft = time.monotonic() - start
        text += piece
        usage = document.get("usage") or usage
    return Answer(200, text, usage, head, "\n".join(raw), error or ("" if done else "stream without [DONE]"), ttft)


def metrics(url):
    """vLLM's gauges and counters: {name: {engine: value}}, labels other than `engine` summed up."""
    _, _, text = request("GET", url, "/metrics")
    found = {}
    for line in text.splitlines():
        if not line.startswith("vllm:"):
            continue
        series, _, value = line.rpartition(" ")
        name, _, labels = series.partition("{")
        engine = labels.partition('engine="')[2].partition('"')[0]
        ranks = found.setdefault(name.removeprefix("vllm:"), {})
        ranks[engine] = ranks.get(engine, 0.0) + float(value)
    return found


def total(page, name):
    return sum(page.get(name, {}).values())
