// Percentiles per stage on one logarithmic axis, the figures beside it, and what stands out.

import { BEFORE_RECEIPT, count, el, keep, mark, say, show, STAGES, time } from "./draw.js";

const TOTAL = "total";
const FIGURES = ["p50_us", "p90_us", "p99_us", "max_us"];

export function drawCauses(list, none, { causes, window_ms }, pick) {
  const gap = (cause) => cause.p50_us - cause.others_p50_us;
  const loud = (cause) => gap(cause) * 10 >= gap(causes[0]);
  keep(list, causes, (cause) => `${cause.stage} ${cause.peer ?? cause.dp_rank}`, (cause) => {
    const text = el("span");
    const button = el("button", { type: "button", text: cause.peer === undefined ? "Show this rank's transfers" : "Show this peer's transfers" });
    button.addEventListener("click", () => pick(cause.peer === undefined ? { rank: String(cause.dp_rank) } : { peer: cause.peer }));
    const node = el("li", {}, el("span", { class: `swatch ${cause.stage}`, "aria-hidden": "true" }), text, button);
    return { node, update: (now) => (say(text, now.text), mark(node, loud(now) ? "bad" : "")) };
  });
  say(none, `No peer and no rank stands out in the last ${window_ms / 1000} s.`);
  show(none, causes.length === 0);
}

function order(group) {
  const stage = STAGES.indexOf(group.stage);
  return stage < 0 ? BEFORE_RECEIPT - 0.5 : stage;
}

function key(group) {
  return [group.stage, group.peer ?? "", group.dp_rank ?? ""].join(" ");
}

// The decades that hold all values, from 10 µs on.
function axis(groups) {
  const largest = Math.max(1000, ...groups.map((group) => group.max_us));
  const last = Math.ceil(Math.log10(largest));
  return { at: (us) => (100 * (Math.log10(Math.max(us, 10)) - 1)) / (last - 1), last };
}

export function drawLatency(table, groups, view) {
  const sorted = groups.toSorted((a, b) => order(a) - order(b) || key(a).localeCompare(key(b)));
  const { at, last } = axis(groups);
  const rows = sorted.length > 0 ? ["head", ...sorted] : [];
  keep(table, rows, (row) => (row === "head" ? row : key(row)), (row) => (row === "head" ? head() : line(row, view)));
  if (rows.length > 0) table.firstChild.ticks(last);
  for (const group of sorted) [...table.children].find((node) => node.dataset.key === key(group))?.fill(group, at);
}

function head() {
  const cell = (text) => el("span", { role: "columnheader", class: "number", text });
  const scale = el("span", { class: "scale", "aria-hidden": "true" });
  const node = el("div", { role: "row", class: "line head" }, el("span", { role: "columnheader", text: "stage" }), el("span", { role: "columnheader", class: "axis" }, scale), ...["p50", "p90", "p99", "max", "n"].map(cell));
  node.ticks = (last) => {
    const decades = Array.from({ length: last }, (_, decade) => decade + 1);
    const few = decades.filter((decade) => decade % 2 === 1);
    keep(scale, few, (decade) => decade, (decade) => {
      const tick = el("span", { class: "tick", text: `${10 ** (decade % 3)} ${["µs", "ms", "s"][Math.floor(decade / 3)]}` });
      return { node: tick, update: () => (tick.style.left = `${(100 * (decade - 1)) / (last - 1)}%`) };
    });
  };
  return { node, update: () => {} };
}

function line(group) {
  const who = group.peer === undefined ? (group.dp_rank === undefined ? "" : `rank ${group.dp_rank}`) : (group.address ?? group.peer);
  const stage = group.stage === TOTAL ? "to the receipt" : group.stage;
  const name = el("span", { role: "rowheader", class: "stage-name", title: group.peer ?? "" }, el("span", { class: `swatch ${group.stage}`, "aria-hidden": "true" }), el("b", { text: stage }), el("span", { class: "who", text: who }));
  const [most, tail] = [el("span", { class: `part ${group.stage}` }), el("span", { class: `part tail ${group.stage}` })];
  const [median, max] = [el("span", { class: "median" }), el("span", { class: "max" })];
  const track = el("span", { role: "cell", class: "track" }, tail, most, median, max);
  const cells = [...FIGURES, "count"].map(() => el("span", { role: "cell", class: "number" }));
  const node = el("div", { role: "row", class: group.stage === TOTAL ? "line sum" : "line", "data-key": key(group) }, name, track, ...cells);
  node.fill = (now, at) => {
    const stretch = (part, from, to) => ((part.style.left = `${at(from)}%`), (part.style.width = `${at(to) - at(from)}%`));
    stretch(most, now.p50_us, now.p90_us);
    stretch(tail, now.p90_us, now.p99_us);
    median.style.left = `${at(now.p50_us)}%`;
    max.style.left = `${at(now.max_us)}%`;
    track.setAttribute("aria-label", `median ${time(now.p50_us)}, 90 % ${time(now.p90_us)}, 99 % ${time(now.p99_us)}`);
    FIGURES.forEach((figure, index) => say(cells[index], time(now[figure])));
    say(cells[FIGURES.length], String(now.count));
  };
  return { node, update: () => {} };
}

// What to ask for: a filter needs the groups that it picks from.
export function by(view) {
  const words = [];
  if (view.rank || view.split === "rank") words.push("rank");
  if (view.peer || view.split === "peer") words.push("peer");
  return words;
}

export function picked(groups, view) {
  const kept = groups.filter((group) => (!view.rank || String(group.dp_rank) === view.rank) && (!view.peer || group.peer === view.peer));
  // Where a filter has left one rank or peer, its name is no news.
  return kept.map((group) => ({ ...group, peer: view.split === "peer" ? group.peer : undefined, dp_rank: view.split === "rank" ? group.dp_rank : undefined }));
}

export function note(groups, { covered_ms }, view) {
  if (groups.length === 0) return "No transfer has got a receipt in this window.";
  const how = view.rank || view.peer ? ", of the chosen rank and peer only" : "";
  return `Logarithmic axis. A bar goes from the median to 90 %, its thin end to 99 %, the dot is the longest. The last ${count(Math.round(covered_ms / 1000), "second")}${how}.`;
}
