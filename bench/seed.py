#!/usr/bin/env python3
"""`bench/seed.sh`: the seed's benchmark (Llama 3.1 8B, DP8 TP1, prefill and decode split) on this machine, gate stage and direct.

  seed.py [--scale N] [--prompts N] [--concurrency N] [--input N] [--output N] [--out FILE]

The shape is that of `vllm bench serve --dataset-name random --num-prompts 100 --random-input-len 2000 --random-output-len 2000
--max-concurrency 32 --ignore-eos` against /v1/completions: streamed, all requests at once but no more than 32 at a time. Real: router,
both sidecars, NIXL, staging, every KV byte of the prompts, HTTP. Simulated: the engines (`kvgate sim`), whose prefill takes as long as
--prefill-tokens-per-s says and whose tokens come every --tpot-ms, both set to what the seed's report shows; their text is a function of
the KV bytes, and each answer is compared with that of an engine that does not split.

Llama 3.1 8B has 128 KiB of KV per token: 32 requests of 4,000 tokens are 16 GiB on D, with P and staging 32 GiB. --scale 8 takes an eighth of the
layers, so an eighth of the bytes; by default the smallest scale that fits into half of the memory that is free. The head says which.
"""

import argparse
import asyncio
import json
import os
import pathlib
import random
import sys

sys.dont_write_bytecode = True
TREE = pathlib.Path(__file__).resolve().parents[1]
sys.path.append(str(TREE / "tests" / "support"))

import seed_load as load
import seed_pods as pods
import seed_table as table
from processes import Failure, end_with_signals

LAYERS = 32
BYTES_PER_TOKEN = 128 << 10
SCALES = (1, 2, 4, 8, 16, 32)
RANKS = 8


def needed(scale, options):
    """Bytes of KV and staging that the run touches at most: P's prompts, their copies in staging, D's prompts and answers."""
    tokens = options.concurrency * (3 * options.input + options.output)
    return tokens * BYTES_PER_TOKEN // scale


def available():
    for line in pathlib.Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) << 10
    return 0


def choose_scale(options):
    if options.scale:
        return options.scale
    fitting = [scale for scale in SCALES if needed(scale, options) <= available() // 2]
    if not fitting:
        sys.exit(f"seed: {available() >> 20} MiB of memory are free, and even --scale {SCALES[-1]} needs {needed(SCALES[-1], options) >> 19} MiB")
    return fitting[0]


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", type=int, choices=SCALES, help="divide the KV bytes per token by this")
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--concurrency", type=int, default=32)
    parser.add_argument("--input", type=int, default=2000, help="tokens of each prompt")
    parser.add_argument("--output", type=int, default=2000, help="tokens of each answer")
    parser.add_argument("--prefill-tokens-per-s", type=int, default=25_000, help="of one rank: 2,000 tokens in 80 ms")
    parser.add_argument("--tpot-ms", type=int, default=7, help="the seed's mean is 7.25")
    parser.add_argument("--out", type=pathlib.Path, default=TREE / "target" / "bench" / "seed.json")
    return parser.parse_args()


def prompts(options):
    """As many texts of as many bytes; the engines' tokens are bytes. Seeded: every run asks the same."""
    draw = random.Random(20251028)
    letters = "abcdefghijklmnopqrstuvwxyz     "
    return ["".join(draw.choices(letters, k=options.input)) for _ in range(options.prompts)]


async def measure(options, scale):
    texts = prompts(options)
    runs = {}
    with pods.Deployment(options, scale, RANKS, LAYERS) as deployment:
        # What the texts must be: an engine that computes and decodes by itself, as fast as it can.
        table.progress("what the answers must be, from an engine that does not split")
        expected = await load.run(deployment.reference, texts, options)
        for gate in ("stage", "direct"):
            router = deployment.router(gate)
            # First contacts between the pods are a matter of once per engine start: all ranks, before the clock runs.
            table.progress(f"gate {gate}: warming up")
            await load.run(router, [f"{n} {text}"[: options.input] for n, text in enumerate(texts[: 2 * RANKS])], options, output=4)
            table.progress(f"gate {gate}: {options.prompts} prompts")
            runs[gate] = await load.run(router, texts, options)
            load.compare(runs[gate], expected)
    return runs


def main():
    options = arguments()
    scale = choose_scale(options)
    end_with_signals()
    try:
        runs = asyncio.run(measure(options, scale))
    except Failure as failure:
        sys.exit(f"seed: {failure}")
    figures = {gate: table.figures(answers) for gate, answers in runs.items()}
    head = table.head(options, scale, BYTES_PER_TOKEN, os.getloadavg()[0])
    print(table.text(head, figures))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps({"head": head, "seed": table.SEED, "ours": figures}, indent=2) + "\n")
    wrong = [gate for gate, one in figures.items() if one["right"] != options.prompts]
    if wrong:
        sys.exit(f"seed: not every answer is right with --gate {' and '.join(wrong)}")


if __name__ == "__main__":
    main()
