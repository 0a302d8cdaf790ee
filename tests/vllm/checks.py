"""Gated requests against the same vLLM without P/D, by kind, length, rank pair, and number of clients."""

import json
import os
import pathlib
import subprocess
from concurrent.futures import ThreadPoolExecutor

import gate as gates
import web
from pair import DP
from groups import wait_for
from prompts import LENGTHS, prompt
from say import Failure, progress, tail

ENGINE = pathlib.Path(__file__).resolve().parent / "engine"
KINDS = [(chat, stream) for chat in (False, True) for stream in (False, True)]


def label(chat, stream):
    return f"{'chat' if chat else 'completion'}{', streamed' if stream else ''}"


def rank_pairs(report, router, sidecar, d):
    """Every P rank with every D rank, all kinds and lengths; D's own notification must name the rank."""
    transfers_before = web.total(web.metrics(d.url), "nixl_xfer_time_seconds_count")
    pulled = 0
    for i in range(DP):
        for j in range(DP):
            wish = {"X-data-parallel-rank": str(j), "X-KVGate-Prefill-Rank": str(i)}
            good = True
            for tokens in LENGTHS:
                for chat, stream in KINDS:
                    name = f"P@{i} D@{j}, {label(chat, stream)}, {tokens} tokens"
                    text = prompt(tokens, chat)
                    answer = web.complete(router, text, chat, stream, wish)
                    reference = web.complete(d.url, text, chat, headers={"X-data-parallel-rank": str(j)})
                    good &= report.equal(name, answer, reference)
                    good &= went(report, name, answer, sidecar, i, j)
                    pulled += 1
            report.data["rank_pairs"] += good
            report.check(f"P@{i} to D@{j}: {len(LENGTHS) * len(KINDS)} requests, each collected by rank {j}", good)
    counted = wait_for(
        "D's own count of NIXL transfers",
        lambda: max(0, web.total(web.metrics(d.url), "nixl_xfer_time_seconds_count") - transfers_before),
        15,
    )
    report.check("D itself counts its NIXL reads", counted >= pulled * 0.9, f"{counted:.0f} for {pulled} requests")
    report.data["d_nixl_transfers"] = counted


def went(report, name, answer, sidecar, i, j):
    """Whether a request took the way that its headers asked for, by the router, the sidecar and D's notification."""
    head = answer.headers
    way = (head.get("x-kvgate-path"), head.get("x-kvgate-prefill-rank"), head.get("x-kvgate-decode-rank"))
    by = gates.collected_by(sidecar, head.get("x-kvgate-transfer", ""))
    good = way == ("pd", str(i), str(j)) and by == j
    if not good:
        report.check(f"{name}: way", False, f"{way}, collected by {by}")
    return good


def same_rank(report, router, d):
    """Pairing `same`, ranks chosen by the router; each prompt twice."""
    seen = set()
    good = True
    for chat, stream in KINDS:
        for tokens in (33, 300):
            text = prompt(tokens, chat)
            answers = [web.complete(router, text, chat, stream) for _ in range(2)]
            reference = web.complete(d.url, text, chat)
            for turn, answer in enumerate(answers):
                ranks = (answer.headers.get("x-kvgate-prefill-rank"), answer.headers.get("x-kvgate-decode-rank"))
                name = f"same rank, {label(chat, stream)}, {tokens} tokens, turn {turn}"
                good &= report.equal(name, answer, reference)
                good &= ranks[0] == ranks[1]
                seen.add(ranks)
    report.check("pairing same: equal texts, P's rank is D's rank", good, f"rank pairs {sorted(map(str, seen))}")


def many_clients(report, router, d, clients=16, requests=48):
    """Many clients at once; the references are taken afterwards, one after another."""
    work = [(prompt(40 + 37 * (n % 12), n % 2 == 1), *KINDS[n % 4]) for n in range(requests)]
    with ThreadPoolExecutor(clients) as pool:
        answers = list(pool.map(lambda item: web.complete(router, *item), work))
    good = True
    for number, ((text, chat, stream), answer) in enumerate(zip(work, answers)):
        reference = web.complete(d.url, text, chat)
        good &= report.equal(f"{clients} clients, request {number}, {label(chat, stream)}", answer, reference)
    report.check(f"{clients} clients at once: {requests} requests", good)


def client_leaves(report, router, sidecar, p, d):
    """A client that leaves mid-stream: P's and D's figures return to what they were before."""
    before, name = settled(p, d, sidecar), "after clients left, blocks of P, D and staging are free"
    for tokens in (64, 400):
        connection = web.connect(router, 60)
        body = web.body_of(prompt(tokens), stream=True, max_tokens=1500)
        connection.request("POST", web.path_of(False), json.dumps(body), {"Content-Type": "application/json"})
        reply = connection.getresponse()
        seen = web.events(reply)
        first = [next(seen) for _ in range(3)]
        running, _, usage = wait_for("D to show the request", lambda: shown(d), 10)
        reply.close()
        connection.close()
        note = f"on D: {running:.0f} running, KV use {usage:.3f}"
        report.check(f"client left after {len(first)} events of 1500", running == 1, note)

    def now():
        return p.load(), d.load(), gates.staging_used(sidecar)

    try:
        wait_for("P, D and staging to be as before", lambda: now() == before, 20)
        report.check(name, True, str(before))
    except Failure as failure:
        report.check(name, False, f"{failure}: {now()}, before {before}")


def shown(server):
    """A server's load once it shows a running request with KV."""
    load = server.load()
    return load if load[0] and load[2] else None


def settled(p, d, sidecar):
    """(P's load, D's load, staging blocks used) once nothing runs."""

    def idle():
        now = (p.load(), d.load(), gates.staging_used(sidecar))
        return now if now[0][:2] == now[1][:2] == (0.0, 0.0) and now[2] == 0 else None

    return wait_for("P, D and staging to be idle", idle, 45)


def openai_client(report, router, d, python):
    """OpenAI's own Python client, as users have it."""
    work = [{"prompt": prompt(200, chat), "chat": chat, "stream": stream} for chat, stream in KINDS]
    done = subprocess.run(
        [python, ENGINE / "openai_client.py", router + "/v1"], input=json.dumps(work), capture_output=True, text=True, timeout=120
    )
    if done.returncode != 0:
        report.check("OpenAI's Python client", False, done.stderr[-1500:])
        return
    good = True
    for item, answer in zip(work, json.loads(done.stdout)):
        reference = web.complete(d.url, item["prompt"], item["chat"])
        got = web.Answer(200, answer["text"], answer["usage"], {}, "")
        good &= report.equal(f"OpenAI's client, {label(item['chat'], item['stream'])}", got, reference)
    report.check("OpenAI's Python client, streaming and not", good)


def bench_serve(report, router, python, model, folder):
    """vLLM's own load generator through the router."""
    log, result = folder / "bench_serve.log", folder / "bench_serve.json"
    command = f"""--backend vllm --base-url {router} --model tiny --tokenizer {model} --dataset-name random
        --random-input-len 400 --random-output-len 16 --num-prompts 40 --max-concurrency 8 --seed 1 --temperature 0
        --save-result --result-dir {folder} --result-filename {result.name}""".split()
    with open(log, "wb") as out:
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
        program = [python, ENGINE / "bench_serve.py", *command]
        subprocess.run(program, stdout=out, stderr=subprocess.STDOUT, env=environment, timeout=240)
    try:
        figures = json.loads(result.read_text())
    except (OSError, ValueError):
        report.check("vllm bench serve", False, "\n" + tail(log))
        return
    keys = ("completed", "failed", "median_ttft_ms", "p99_ttft_ms", "request_throughput")
    kept = {key: figures.get(key) for key in keys}
    report.data["bench_serve"] = kept
    good = kept["completed"] == 40 and not kept["failed"]
    report.check("vllm bench serve through the router", good, json.dumps(kept))


def cached_prefixes(report, router, sidecar, p, d):
    """Prefix caching on. The reference is P alone, which computed the prompt itself: D would answer from what it pulled."""
    progress("prefix caching on: prompts that D or P has partly seen")
    good = True
    hits_before = web.total(web.metrics(d.url), "prefix_cache_hits_total")
    for chat, stream in KINDS:
        for head, rest in ((64, 5), (320, 33), (33, 200)):
            start, wish = prompt(head), {"X-data-parallel-rank": "1", "X-KVGate-Prefill-Rank": "0"}
            web.complete(d.url, start, headers={"X-data-parallel-rank": "1"})  # D@1 now has the first `head` tokens.
            for turn in range(2):
                text = start + prompt(rest)
                answers = [web.complete(router, text, chat, stream, wish) for _ in range(2)]
                reference = web.complete(p.url, text, chat, headers={"X-data-parallel-rank": "0"})
                for number, answer in enumerate(answers):
                    name = f"cached prefix of {head}, {label(chat, stream)}, turn {turn}.{number}"
                    good &= report.equal(name, answer, reference) and went(report, name, answer, sidecar, 0, 1)
    hits = web.total(web.metrics(d.url), "prefix_cache_hits_total") - hits_before
    report.check("prompts with a prefix cached on D, and repeated", good and hits > 0, f"D's prefix hits: {hits:.0f} tokens")
