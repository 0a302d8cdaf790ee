#!/usr/bin/env python3
"""What the benches measured, as targets and as tables: target/bench/results.json, and the marked parts of docs/*.md and README.md.

  report.py          reads target/bench/{nixl,router,allocations,sidecar,pinned,scale,vllm}.json, whichever are there

A marked part begins with `<!-- bench:AREA -->` and ends with `<!-- /bench -->`; what is between them is replaced by the area's tables with the
machine, the versions and the commit that they were measured with. An area without figures keeps what is written.
"""

import json
import pathlib
import re
import statistics
import sys

TREE = pathlib.Path(__file__).resolve().parents[1]
OUT = TREE / "target" / "bench"
AREAS = ("nixl", "router", "allocations", "sidecar", "pinned", "scale", "vllm")
MARKED = re.compile(r"(<!-- bench:([a-z-]+) -->\n).*?(<!-- /bench -->)", re.DOTALL)


def number(value, digits=2):
    """Enough digits to tell a small one from none."""
    return f"{value:,.{digits}f}" if abs(value) >= 0.1 or value == 0 else f"{value:.2g}"


def spread(value):
    """A median, with the lowest and highest round where there are several."""
    if not isinstance(value, dict):
        return number(value)
    middle, low, high = (value[key] for key in ("median", "min", "max"))
    return number(middle) if low == high else f"{number(middle)} ({number(low)}–{number(high)})"


def markdown(head, lines):
    return "\n".join(["| " + " | ".join(head) + " |", "|" + "---|" * len(head), *("| " + " | ".join(line) + " |" for line in lines)])


# Targets: {name, target, value, shown, met} of each area ---------------------------------------------------------------------


def plain(target):
    """What a bench has judged itself."""
    value, unit = target["value"], target.get("unit", "")
    middle = value["median"] if isinstance(value, dict) else value
    return {"name": target["name"], "target": target["target"], "value": middle, "shown": f"{spread(value)} {unit}".strip(), "met": target["met"]}


def of_router(found):
    for row in found["rows"]:
        value = float(re.match(r"[\d,.]+", row["measured"])[0].replace(",", ""))
        yield {"name": row["row"], "target": row["target"], "value": value, "shown": row["measured"], "met": row["verdict"] == "met"}


def of_sidecar(found):
    for row in found["figures"]:
        yield {"name": row["what"], "target": f"≤ {row['goal']:g} {row['unit']}", "value": row["value"],
               "shown": f"{number(row['value'])} {row['unit']}", "met": row["verdict"] == "met"}


def of_vllm(found):
    asked = {"tiny": ("ttft_ratio", "time to first token, gated / direct, D idle, 500 tokens", 1.05),
             "seats-8": ("pinned_ratio", "block-seconds on P, gated / direct, D takes 8 per rank", 0.25),
             "seats-4": ("pinned_ratio", "block-seconds on P, gated / direct, D takes 4 per rank", 0.25)}
    for row, (figure, name, most) in asked.items():
        if row in found["rows"]:
            value = found["rows"][row][figure]
            yield {"name": name, "target": f"≤ {most} ×", "value": value, "shown": f"{value:.2f} ×", "met": value <= most}


def targets(area, found):
    if "targets" in found:
        return [plain(target) for target in found["targets"]]
    judge = {"router": of_router, "sidecar": of_sidecar, "vllm": of_vllm}.get(area)
    return list(judge(found)) if judge else []


# Tables ---------------------------------------------------------------------------------------------------------------


def target_table(judged):
    lines = [(of["name"], of["target"], of["shown"], "met" if of["met"] else "**short**") for of in judged]
    return markdown(("", "target", "measured", ""), lines)


def nixl_tables(found):
    """One per UCX_TLS: medians of the rounds, and ratios taken within each."""
    for name, shapes in found["rows"].items():
        if name == "idle":
            continue
        who, lines = None, []
        for shape, turns in shapes.items():
            who = who or list(turns)
            middle = {of: {key: statistics.median(turn[key] for turn in rounds) for key in ("p50_us", "gb_per_s", "cpu_s_per_gib")}
                      for of, rounds in turns.items()}
            small = shape.startswith("1 × ")
            figure, unit = ("p50_us", "µs") if small else ("gb_per_s", "GB/s")
            pairs = zip(turns["kvgate"], turns["python"])
            faster = [theirs["p50_us"] / mine["p50_us"] for mine, theirs in pairs]
            ratio = spread({"median": statistics.median(faster), "min": min(faster), "max": max(faster)})
            cpu = "" if small else f"{middle['kvgate']['cpu_s_per_gib'] / middle['python']['cpu_s_per_gib']:.2f} ×"
            lines.append((f"{shape}, {unit}", *(number(middle[of][figure], 1 if small else 2) for of in who), f"{ratio} ×", cpu))
        title = {"default": "`UCX_TLS` unset", "tcp": "`UCX_TLS=tcp`, as between pods and where containers have no CMA",
                 "posix": "`UCX_TLS=posix,self` and `ucx_error_handling_mode=none`: shared memory"}[name]
        yield f"{title}\n\n" + markdown(("", *who, "kvgate as fast as python, times", "CPU s/GiB of python's"), lines)


def router_table(found):
    keys = ("row", "peer", "direct", "stage", "beside")
    yield markdown(("", "`vllm-router`", "`--gate direct`", "`--gate stage`", "beside"), [tuple(row[key] for key in keys) for row in found["rows"]])


def sidecar_table(found):
    lines = []
    for run in found.get("runs", []):
        cells = [" / ".join(number(run[of][key], 0) for key in ("p50_us", "p90_us", "p99_us")) for of in ("overhead", "whole", "wire")]
        lines.append((run["row"], str(run["clients"]), number(run["transfers"] / run["seconds"], 0), *cells))
    if lines:
        yield markdown(("", "clients", "transfers/s", "overhead p50 / p90 / p99, µs", "whole, µs", "wire, µs"), lines)


def pinned_table(found):
    rates = found["prefills_per_s"]
    line = (f"{found['requests']} requests at once, P's cache holds {found['prompts_in_cache']} prompts", spread(rates["stage"]), spread(rates["direct"]),
            f"{spread(found['whole_load'])} ×")
    yield markdown(("", "P's prefills/s, gated", "direct", "last answer, gated / direct"), [line])


def timeline(row, of):
    """Part by part, in ms: where the difference is. What is first contact is not in it."""
    parts = of["parts_ms"]
    lines = []
    for part, gated in parts["stage"].items():
        direct = parts["direct"].get(part)
        lines.append((part, number(gated["median"]), number(direct["median"]) if direct else ""))
    lines.append(("time to first token", number(of["ttft_ms"]["stage"]["median"]), number(of["ttft_ms"]["direct"]["median"])))
    firsts = [sum(first.get(part, 0) for part in ("handshake", "post", "wire")) for first in of.get("first_contacts", []) if first["gate"] == "stage"]
    after = f" In a rank's first transfer from P, handshake, post and wire took up to {number(max(firsts), 1)} ms together." if firsts else ""
    return f"Time to first token, row {row}, medians in ms.{after}\n\n" + markdown(("part", "gated", "direct"), lines)


def vllm_table(found):
    lines = []
    for row, of in found["rows"].items():
        # What it was built by is told in further lines.
        version = of["kvgate"].partition("\n")[0]
        if "ttft_ratio" in of:
            ms = [f"{of['ttft_ms'][gate]['median']:.0f}" for gate in ("stage", "direct")]
            lines.append((row, f"time to first token, {of['tokens']} tokens, {of['request_mib']} MiB", f"{of['ttft_ratio']:.2f} ×",
                          f"{' / '.join(ms)} ms", of["ucx_tls"], version))
        else:
            lines.append((row, "block-seconds on P", f"{of['pinned_ratio']:.2f} ×", "", of["ucx_tls"], version))
    yield markdown(("row", "what", "gated / direct", "medians", "`UCX_TLS`", "measured with"), lines)
    yield from (timeline(row, of) for row, of in found["rows"].items() if "parts_ms" in of)


TABLES = {"nixl": nixl_tables, "router": router_table, "sidecar": sidecar_table, "pinned": pinned_table, "vllm": vllm_table}


def tables(area, found):
    return found.get("tables") or list(TABLES.get(area, lambda found: [])(found))


def stamp(machine):
    """Under each table: what it was measured with."""
    known = {key: value for key, value in machine.items() if value}
    words = [f"{known.get('cores', '?')} cores of {known.get('cpu', 'an unknown CPU')}", f"kernel {known['kernel']}" if "kernel" in known else "",
             f"commit {known['commit']}" if "commit" in known else "", f"NIXL {known['nixl']}" if "nixl" in known else "",
             f"UCX {known['ucx']}" if "ucx" in known else "", known.get("rustc", ""),
             f"load {known['load']:.1f} when it began" if "load" in known else "", known.get("date", "")]
    return "*" + "; ".join(word for word in words if word) + ".*"


# Reading and writing ------------------------------------------------------------------------------------------------------------------------


def measured():
    """Every area's figures, with the machine that they were measured on."""
    stamps = load(OUT / "results.json").get("areas", {})
    for area in AREAS:
        found = load(OUT / f"{area}.json")
        if found:
            yield area, found, {**found.get("machine", {}), **stamps.get(area, {})}


def load(path):
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return {}


def fill(texts):
    """Replaces the marked parts; answers the files that changed."""
    changed = []
    for page in [TREE / "README.md", *sorted((TREE / "docs").glob("*.md"))]:
        old = page.read_text()
        new = MARKED.sub(lambda match: match[1] + texts[match[2]] + "\n" + match[3] if match[2] in texts else match[0], old)
        if new != old:
            page.write_text(new)
            changed.append(str(page.relative_to(TREE)))
    return changed


def write(areas=None, not_run=None):
    """Writes results.json and the marked parts. `areas` are stamps of what has just been run, `not_run` says what was not, and why."""
    before = load(OUT / "results.json")
    stamps = {**before.get("areas", {}), **(areas or {})}
    judged, texts = [], {}
    for area, found, machine in measured():
        of = targets(area, found)
        machine = {**machine, **stamps.get(area, {})}
        judged += [{"area": area, **target} for target in of]
        parts = [target_table(of)] if of else []
        texts[area] = "\n\n".join([*parts, *tables(area, found), stamp(machine)])
        # What an area says elsewhere.
        texts.update({name: f"{text}\n\n{stamp(machine)}" for name, text in found.get("parts", {}).items()})
    results = {"targets": judged, "areas": stamps, "not_run": not_run if not_run is not None else before.get("not_run", {})}
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / "results.json").write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    return results, fill(texts)


def show(results):
    """One table per area."""
    for area in AREAS:
        lines = [(of["name"], of["target"], of["shown"], "met" if of["met"] else "short") for of in results["targets"] if of["area"] == area]
        if lines:
            print(f"\n{area}")
            widths = [max(len(line[at]) for line in lines) for at in range(4)]
            for line in lines:
                print("  " + "  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip())
    for area, why in results["not_run"].items():
        print(f"\n{area}: not run: {why}")


def main():
    results, changed = write()
    show(results)
    for page in changed:
        print(f"wrote {page}", file=sys.stderr)


if __name__ == "__main__":
    main()
