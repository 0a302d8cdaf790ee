"""The load: streams whose right text is known, and what became of each."""

import asyncio
import collections
import json

import pods
import web
from say import Failure, since_start

PROMPTS = 400
# Whoever has no whole answer by then is hung: the router's own limits, time for the tokens, and a process that is frozen meanwhile.
PATIENCE = pods.REQUEST_DEADLINE_S + pods.IDLE_DEADLINE_S + 20
LEAVES_PERCENT = 4


class Ask:
    """One prompt, and the text that an engine which never splits has for it."""

    def __init__(self, dice, number):
        self.chat = dice.random() < 0.3
        self.tokens = dice.randint(8, 48)
        self.prompt = f"{number} " + "".join(dice.choices("abcdefghijklmnopqrstuvwxyz ", k=dice.randint(1, 380)))
        self.expected = None

    @property
    def path(self):
        return "/v1/chat/completions" if self.chat else "/v1/completions"

    def body(self, stream):
        said = {"messages": [{"role": "user", "content": self.prompt}]} if self.chat else {"prompt": self.prompt}
        return {"model": pods.MODEL, "max_tokens": self.tokens, "temperature": 0, "stream": stream, **said}

    async def learn(self, reference):
        said = web.Said()
        await web.send(said, "POST", reference, self.path, self.body(stream=False))
        self.expected, complete, _ = read(said, stream=False)
        if not complete:
            raise Failure(f"the reference engine fails: {said.status} {said.body[:200]}")


def read(said, stream):
    """(text, whether it is complete, the error's code) of an answer."""
    if said.status is None:
        return "", False, None
    if said.status != 200:
        try:
            return "", False, json.loads(said.body)["error"]["code"]
        except (ValueError, KeyError, TypeError):
            return "", False, None
    if not stream:
        try:
            choice = json.loads(said.body)["choices"][0]
        except (ValueError, KeyError):
            return "", False, None
        return choice["message"]["content"] if "message" in choice else choice["text"], bool(choice["finish_reason"]), None
    text, complete, code = "", False, None
    # What follows the last empty line is not an event yet.
    for event in said.body.decode(errors="replace").split("\n\n")[:-1]:
        data = event.strip().removeprefix("data: ")
        if data == "[DONE]":
            complete = True
        elif data.startswith("{"):
            document = json.loads(data)
            code = document.get("error", {}).get("code", code)
            for choice in document.get("choices", []):
                text += choice.get("text") or choice.get("delta", {}).get("content") or ""
    return text, complete, code


class Load:
    """So many streams at a time, until it is told to stop."""

    def __init__(self, topology, dice):
        self.topology, self.dice = topology, dice
        self.asks = [Ask(dice, number) for number in range(PROMPTS)]
        self.ended = collections.Counter()
        self.errors = collections.Counter()
        self.broken = []
        # One line for each request: what became of it, for whoever looks for the reason.
        self.journal = open(topology.folder / "requests.jsonl", "w")

    async def learn(self):
        for start in range(0, len(self.asks), 32):
            await asyncio.gather(*(ask.learn(self.topology.reference.url) for ask in self.asks[start:start + 32]))

    async def run(self, streams, stop):
        async def one():
            while not stop.is_set():
                if await self.send(may_leave=True) == "error":
                    await asyncio.sleep(0.5)

        await asyncio.gather(*(one() for _ in range(streams)))

    async def send(self, may_leave=False):
        """One request from beginning to end; what became of it."""
        dice = self.dice
        ask, stream = dice.choice(self.asks), dice.random() < 0.85
        leaves = may_leave and dice.uniform(0, 100) < LEAVES_PERCENT
        router, said, broke = self.topology.router, web.Said(), None
        began = asyncio.get_running_loop().time()

        def became(what, why):
            self.ended[what] += 1
            took = round(asyncio.get_running_loop().time() - began, 3)
            line = {"at": round(since_start() - took, 3), "took": took, "became": what, "why": why, "id": said.headers.get("x-request-id")}
            self.journal.write(json.dumps(line) + "\n")
            if what == "error":
                self.errors[why] += 1
            elif what in ("wrong", "hung"):
                self.broken.append(f"{what}: {why}; {line['id']} {ask.prompt[:20]!r}…: HTTP {said.status} {said.body[-300:]!r} for {ask.expected!r}")
            return what

        try:
            async with asyncio.timeout(dice.uniform(0.01, 1.0) if leaves else PATIENCE):
                await web.send(said, "POST", router.url, ask.path, ask.body(stream))
        except TimeoutError:
            return became("left", "") if leaves else became("hung", "it has not ended")
        except (OSError, EOFError, ValueError) as error:
            broke = error
        text, complete, code = read(said, stream)
        if broke is None and complete and code is None and text == ask.expected:
            return became("right", "")
        if not ask.expected.startswith(text):
            return became("wrong", f"the text is {text!r}")
        if code is None and router.was_gone_since(began):
            code = "connection_refused" if said.status is None else "cut_when_the_router_was_killed"
        if code is None:
            return became("wrong", f"it ends without a word: {broke!r}")
        return became("error", f"{said.status or ''} {code}".strip())
