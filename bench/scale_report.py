"""What `bench/scale.py` has measured, as targets, tables, plots, and as what a cluster of 1,000 pods would need."""

import statistics

FLAT = 1.3
STRAIGHT = 0.98
GROWS = 2.0
# The cluster that docs/scale.md speaks of.
PODS, PER_POD, ROUTERS, RATE, ANSWER_S = 1000, 8, 4, 2000, 10
# What grows in each row, and the process that is looked at.
GROWING = {
    "router-ranks": ("the router, ranks a side", "rank (one on each side)"),
    "router-rate": ("the router, requests per second", None),
    "router-connections": ("the router, idle connections of clients", "idle connection"),
    "router-streams": ("the router, streams open", "open stream"),
    "sidecar-ranks": ("a sidecar, ranks of its pod", "rank"),
    "sidecar-handles": ("a decode pod's sidecar, landed transfers that are not collected", "landed transfer"),
    "prefill-handles": ("a prefill pod's sidecar, pinned handles", "pinned handle"),
    "sidecar-rate": ("a sidecar, transfers per second", None),
    "sidecar-subscribers": ("a sidecar, routers that follow it", "router"),
}


def middle(values):
    return statistics.median(values)


def spread(values):
    return {"median": middle(values), "min": min(values), "max": max(values)}


def sizes(row):
    return sorted((size for size in row if size.isdigit()), key=int)


def line(row, figure):
    """Slope, value at none, and how straight it is (R²), through all sizes."""
    points = [(int(size), middle(row[size][figure])) for size in sizes(row)]
    xs, ys = zip(*points)
    mx, my = statistics.fmean(xs), statistics.fmean(ys)
    across = sum((x - mx) ** 2 for x in xs)
    slope = sum((x - mx) * (y - my) for x, y in points) / across
    rest = sum((y - my - slope * (x - mx)) ** 2 for x, y in points)
    whole = sum((y - my) ** 2 for y in ys)
    return {"slope": slope, "at_none": my - slope * mx, "straight": 1 - rest / whole if whole else 1.0}


def target(name, wanted, value, met, unit=""):
    return {"name": name, "target": wanted, "value": value, "unit": unit, "met": met}


def ratios(row, figure):
    """The largest size's beside the smallest one's, within each round."""
    smallest, *_, largest = [size for size in sizes(row) if figure in row[size]]
    rounds = min(len(row[smallest][figure]), len(row[largest][figure]))
    pairs = zip(row[largest][figure][-rounds:], row[smallest][figure][-rounds:])
    return smallest, largest, spread([many / max(few, 1e-9) for many, few in pairs])


def targets(found):
    for name, row in found.items():
        if name not in GROWING:
            continue
        what, each = GROWING[name]
        known = sizes(row)
        if "cpu_us" in row[known[0]]:
            smallest, largest, ratio = ratios(row, "cpu_us")
            yield target(f"CPU per request of {what}, {int(largest):,} / {smallest}", f"≤ {FLAT}", ratio, ratio["median"] <= FLAT, "×")
        if each and "rss_mb" in row[known[0]]:
            straight = line(row, "rss_mb")["straight"]
            yield target(f"memory of {what}: R² of a straight line", f"≥ {STRAIGHT}", round(straight, 4), straight >= STRAIGHT)
        if not each:
            reached = [size for size in known if middle(row[size]["rate"]) >= 0.97 * int(size)]
            top = row[reached[-1] if reached else known[0]]
            growth = spread([late / max(early, 1) for early, late in top["halves_p50_us"]])
            yield target(f"{what}: reached, of {int(known[-1]):,} asked for", f"{5000:,}", int(reached[-1]) if reached else 0,
                         bool(reached) and int(reached[-1]) >= 5000)
            yield target(f"p50 of {what}, second half / first half of the time at that rate", f"≤ {GROWS}", growth, growth["median"] <= GROWS, "×")
            yield target(f"requests left inside afterwards: {what.split(',')[0]}", "0", row["after"]["inside"][0], row["after"]["inside"][0] == 0)


def table(head, lines):
    return "\n".join(["| " + " | ".join(head) + " |", "|" + "---|" * len(head), *("| " + " | ".join(line) + " |" for line in lines)])


def shown(row, size, figure, digits=0):
    values = row[size].get(figure)
    return f"{middle(values):,.{digits}f}" if values else ""


def tables(found):
    for name, (what, each) in GROWING.items():
        if name not in found:
            continue
        row = found[name]
        columns = [("cpu_us", "CPU per request, µs", 0), ("p50_us", "p50, µs", 0), ("p99_us", "p99, µs", 0), ("rate", "requests/s", 0),
                   ("rss_mb", "memory, MB", 1), ("keep_p99_us", "p99 of claiming or reporting one more, µs", 0), ("rest_us_per_s", "CPU at rest, µs/s", 0)]
        columns = [column for column in columns if column[0] in row[sizes(row)[0]] and not (column[0] == "rss_mb" and not each)]
        lines = [(f"{int(size):,}", *(shown(row, size, figure, digits) for figure, _, digits in columns)) for size in sizes(row)]
        yield table((what[0].upper() + what[1:], *(title for _, title, _ in columns)), lines)
    yield table(("slope", "bytes", "in a straight line, R²"), list(slopes(found)))


def slopes(found):
    for name, (what, each) in GROWING.items():
        if each and name in found:
            fit = line(found[name], "rss_mb")
            yield f"{what.split(',')[0]}, per {each}", f"{fit['slope'] * 1e6:,.0f}", f"{fit['straight']:.4f}"
    if "sidecar-records" in found:
        yield "a sidecar, per ended transfer that it remembers (1,024 a rank)", f"{found['sidecar-records']['kept']['bytes_each'][0]:,.0f}", ""


def curves(found):
    for name, (what, _) in GROWING.items():
        if name not in found:
            continue
        row = found[name]
        costs = [(title, [(int(size), middle(row[size][figure])) for size in sizes(row)])
                 for figure, title in (("cpu_us", "CPU per request"), ("p50_us", "p50"), ("p99_us", "p99")) if figure in row[sizes(row)[0]]]
        if costs:
            yield {"name": name, "title": f"Growing: {what}", "grows": what.split(", ", 1)[1], "costs": costs}


def cluster(found):
    """What a thousand pods would need, as a table of formulas with the slopes put in."""
    needed = ("router-ranks", "router-connections", "router-streams", "sidecar-ranks", "sidecar-handles", "prefill-handles", "sidecar-subscribers")
    if any(name not in found for name in needed):
        return None
    side = PODS // 2 * PER_POD
    memory = {name: line(found[name], "rss_mb") for name in needed}
    cpu, rest = line(found["router-ranks"], "cpu_us"), line(found["router-ranks"], "rest_us_per_s")
    follow, follow_rest = line(found["sidecar-subscribers"], "cpu_us"), line(found["sidecar-subscribers"], "rest_us_per_s")
    open_streams = RATE * ANSWER_S // ROUTERS
    router_mb = memory["router-ranks"]["at_none"] + memory["router-ranks"]["slope"] * side + memory["router-streams"]["slope"] * open_streams
    per_request, at_rest = cpu["at_none"] + cpu["slope"] * side, rest["at_none"] + rest["slope"] * side
    landed = RATE * ANSWER_S // (PODS // 2)
    sidecar_mb = (memory["sidecar-ranks"]["at_none"] + memory["sidecar-ranks"]["slope"] * PER_POD
                  + memory["sidecar-subscribers"]["slope"] * ROUTERS + memory["sidecar-handles"]["slope"] * landed)
    lines = [
        ("router: connections to sidecars that stay open", "one per pod", f"{PODS:,}"),
        ("router: ranks in its choice, each side", "pods / 2 × ranks of a pod", f"{side:,}"),
        ("router: memory", f"{memory['router-ranks']['at_none']:.1f} MB + {memory['router-ranks']['slope'] * 1e3:.2f} kB × ranks a side + "
         f"{memory['router-streams']['slope'] * 1e3:.1f} kB × streams open", f"{router_mb:,.0f} MB with {open_streams:,} streams"),
        ("router: CPU per request", f"{cpu['at_none']:.0f} µs + {cpu['slope'] * 1e3:.0f} ns × ranks a side", f"{per_request:,.0f} µs"),
        ("router: CPU at rest", f"{rest['at_none'] / 1e3:.1f} ms/s + {rest['slope']:.1f} µs/s × ranks a side", f"{at_rest / 1e6:.2f} cores"),
        (f"routers for {RATE:,} requests/s at half a core's load each",
         "requests/s × CPU per request / (0.5 − CPU at rest)",
         f"{RATE * per_request / 1e6 / max(0.05, 0.5 - at_rest / 1e6):.1f}"),
        ("sidecar: connections of routers that stay open", "one per router", f"{ROUTERS}"),
        ("sidecar: CPU per transfer", f"{follow['at_none']:.0f} µs {'−' if follow['slope'] < 0 else '+'} {abs(follow['slope']) * 1e3:.0f} ns × routers",
         f"{follow['at_none'] + follow['slope'] * ROUTERS:,.0f} µs"),
        ("sidecar: CPU at rest", f"{follow_rest['at_none'] / 1e3:.1f} ms/s + {follow_rest['slope']:.0f} µs/s × routers",
         f"{(follow_rest['at_none'] + follow_rest['slope'] * ROUTERS) / 1e6:.3f} cores"),
        ("sidecar of a decode pod: memory beside staging", f"{memory['sidecar-ranks']['at_none']:.1f} MB + "
         f"{memory['sidecar-ranks']['slope'] * 1e3:.0f} kB × ranks + {memory['sidecar-subscribers']['slope'] * 1e3:.1f} kB × routers + "
         f"{memory['sidecar-handles']['slope'] * 1e3:.1f} kB × landed and not collected", f"{sidecar_mb:,.0f} MB with {landed} landed"),
    ]
    said = (f"{PODS:,} pods, half of them prefill, {PER_POD} ranks each; {ROUTERS} routers; {RATE:,} requests/s in all, whose answers stream for "
            f"{ANSWER_S} s.")
    return said + "\n\n" + table(("what", "formula", "there"), lines)


def of(found):
    result = {"targets": list(targets(found)), "tables": list(tables(found)), "curves": list(curves(found))}
    if there := cluster(found):
        result["parts"] = {"scale-cluster": there}
    return result


def show(result):
    for part in [*result["tables"], *result.get("parts", {}).values()]:
        print(part + "\n")
    for of in result["targets"]:
        value = of["value"]
        value = f"{value['median']:.2f} ({value['min']:.2f}–{value['max']:.2f})" if isinstance(value, dict) else value
        print(f"{of['name']:100} {of['target']:>8}  {value} {of['unit']}  {'met' if of['met'] else 'short'}")
