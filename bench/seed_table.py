"""The figures of `vllm bench serve`, and the seed's table beside ours."""

import os
import statistics
import sys

# shared report "Llama 3.1 8B DP8TP1 P/D Disaggregation", October 28, 2025: 16 GPUs, vllm-router.
SEED = {
    "right": 100, "duration": 57.83, "request_rate": 1.73, "output_rate": 3458.42, "peak_output_rate": 3680.0, "total_rate": 6912.71,
    "peak_requests": 64, "input_tokens": 199_761, "output_tokens": 200_000,
    "ttft_mean": 280.18, "ttft_median": 288.96, "ttft_p99": 433.73, "tpot_mean": 7.25, "tpot_median": 7.26, "tpot_p99": 7.37,
    "itl_mean": 9.70, "itl_median": 6.75, "itl_p99": 32.48,
}
ROWS = [
    ("requests that are right", "right", "{:.0f}"),
    ("duration, s", "duration", "{:.2f}"),
    ("requests per s", "request_rate", "{:.2f}"),
    ("output tokens per s", "output_rate", "{:.1f}"),
    ("peak output tokens per s", "peak_output_rate", "{:.0f}"),
    ("tokens per s, in and out", "total_rate", "{:.1f}"),
    ("peak concurrent requests", "peak_requests", "{:.0f}"),
    ("input tokens", "input_tokens", "{:.0f}"),
    ("output tokens", "output_tokens", "{:.0f}"),
    ("TTFT mean, ms", "ttft_mean", "{:.1f}"),
    ("TTFT median, ms", "ttft_median", "{:.1f}"),
    ("TTFT p99, ms", "ttft_p99", "{:.1f}"),
    ("TPOT mean, ms", "tpot_mean", "{:.2f}"),
    ("TPOT median, ms", "tpot_median", "{:.2f}"),
    ("TPOT p99, ms", "tpot_p99", "{:.2f}"),
    ("ITL mean, ms", "itl_mean", "{:.2f}"),
    ("ITL median, ms", "itl_median", "{:.2f}"),
    ("ITL p99, ms", "itl_p99", "{:.2f}"),
]


def progress(text):
    print(f"seed: {text}", file=sys.stderr, flush=True)


def quantile(values, share):
    """By linear interpolation, as numpy has it."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def spread(name, seconds):
    if not seconds:
        return {f"{name}_{what}": float("nan") for what in ("mean", "median", "p99")}
    scaled = [1000 * value for value in seconds]
    return {f"{name}_mean": statistics.fmean(scaled), f"{name}_median": statistics.median(scaled), f"{name}_p99": quantile(scaled, 0.99)}


def figures(answers):
    good = [answer for answer in answers if not answer.error and answer.arrivals]
    if not good:
        raise SystemExit(f"seed: no request succeeded; the first: {answers[0].error}")
    begun, ended = min(answer.started for answer in good), max(answer.ended for answer in good)
    duration = ended - begun
    input_tokens, output_tokens = sum(answer.prompt_tokens for answer in good), sum(answer.tokens for answer in good)
    # Per token after the first, as vllm bench has it: the rest of the answer by its tokens less one.
    tpot = [(answer.ended - answer.arrivals[0]) / (answer.tokens - 1) for answer in good if answer.tokens > 1]
    gaps = [later - earlier for answer in good for earlier, later in zip(answer.arrivals, answer.arrivals[1:])]
    each_second = {}
    for answer in good:
        for arrival in answer.arrivals:
            each_second[int(arrival - begun)] = each_second.get(int(arrival - begun), 0) + 1
    inside = {second: sum(answer.started - begun < second + 1 and answer.ended - begun >= second for answer in good) for second in each_second}
    return {
        "right": sum(answer.right for answer in answers),
        "failed": sorted({answer.error for answer in answers if answer.error}),
        "duration": duration,
        "request_rate": len(good) / duration,
        "output_rate": output_tokens / duration,
        "peak_output_rate": max(each_second.values()),
        "total_rate": (input_tokens + output_tokens) / duration,
        "peak_requests": max(inside.values()),
        "input_tokens": input_tokens,
        "output_tokens": output_tokens,
        **spread("ttft", [answer.arrivals[0] - answer.started for answer in good]),
        **spread("tpot", tpot),
        **spread("itl", gaps),
    }


def head(options, scale, bytes_per_token, load):
    why = "as --scale says" if options.scale else "because memory is short here"
    scaled = "" if scale == 1 else f", 1/{scale} of Llama 3.1 8B's 128 KiB {why}"
    return {
        "simulated": f"engines (kvgate sim): prefill at {options.prefill_tokens_per_s} tokens/s per rank, a token every {options.tpot_ms} ms; no model, no GPU",
        "real": "router, both sidecars, NIXL over what UCX finds on one machine, staging, every KV byte of the prompts, HTTP",
        "kv": f"{bytes_per_token // scale >> 10} KiB per token{scaled}",
        "shape": f"{options.prompts} prompts of {options.input} tokens, {options.output} out, {options.concurrency} at a time, DP8 + DP8",
        "machine": f"{os.cpu_count()} cores for everything, load average {load:.1f} at the end; with few cores TTFT is the time to make and copy the KV",
    }


def text(about, ours):
    lines = [f"{name + ':':<11} {words}" for name, words in about.items()]
    lines += ["", "seed: 16 GPUs with vllm-router; stage, direct: simulated engines with kvgate router", ""]
    lines.append(f"{'':<28} {'seed':>10} {'stage':>10} {'direct':>10} {'stage/direct':>13}")
    for name, key, shape in ROWS:
        stage, direct = ours["stage"][key], ours["direct"][key]
        ratio = f"{stage / direct:.2f}" if direct else "-"
        lines.append(f"{name:<28} {shape.format(SEED[key]):>10} {shape.format(stage):>10} {shape.format(direct):>10} {ratio:>13}")
    for gate, figures in ours.items():
        lines += [f"{gate}: {error}" for error in figures["failed"]]
    return "\n".join(lines)
