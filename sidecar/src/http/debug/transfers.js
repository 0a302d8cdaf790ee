// Recent transfers as a waterfall: each stage a bar, all on one scale.

import { ago, BEFORE_RECEIPT, el, keep, mark, place, say, show, STAGE_WORDS, STAGES, time } from "./draw.js";

// Ids of one client often differ at their ends only: these characters are never cut off.
const TAIL = 10;
const RUNNING = new Set(["queued", "handshaking", "prepared", "in_flight", "verifying", "quiescing"]);

export function outcome(transfer) {
  return RUNNING.has(transfer.state) ? "running" : transfer.state;
}

export function ending(transfer) {
  if (transfer.failure) return `failed: ${transfer.failure.code}`;
  if (transfer.state === "done") return transfer.freed === "collected" ? "collected" : `done: ${transfer.freed ?? "freed"}`;
  return transfer.state.replace("_", " ");
}

export function mood(transfer) {
  if (transfer.state === "failed") return "bad";
  return RUNNING.has(transfer.state) || transfer.state === "landed" ? "wait" : "good";
}

// By how much a stage took longer than is usual, in µs; a stage that took less than half as much again is as usual.
function excess({ why }) {
  const usual = [why?.peer_median_us, why?.others_median_us].filter((median) => median != null);
  const least = Math.min(...usual);
  return usual.length > 0 && why.took_us >= 1.5 * least ? why.took_us - least : 0;
}

export function fits(transfer, view) {
  const find = view.find.toLowerCase();
  return (
    (!view.rank || String(transfer.dp_rank) === view.rank) &&
    (!view.peer || transfer.source.engine_id === view.peer) &&
    (!view.outcome || outcome(transfer) === view.outcome) &&
    (!find || transfer.request_id.toLowerCase().includes(find) || transfer.transfer_id.toLowerCase().includes(find))
  );
}

export function drawLegend(list) {
  for (const stage of STAGES) {
    list.append(el("li", {}, el("span", { class: `swatch ${stage}`, "aria-hidden": "true" }), el("b", { text: stage }), ` ${STAGE_WORDS[stage]}`));
  }
}

function spans(transfer, whole) {
  const wanted = whole ? STAGES : STAGES.slice(0, BEFORE_RECEIPT);
  return transfer.timeline.filter((span) => wanted.includes(span.stage));
}

function end(transfer, whole) {
  return Math.max(0, ...spans(transfer, whole).map((span) => span.start_us + span.duration_us));
}

// A round number of microseconds that is not less.
export function round(us) {
  const ten = 10 ** Math.floor(Math.log10(Math.max(us, 10)));
  return [1, 2, 4, 6, 8, 10].map((step) => step * ten).find((step) => step >= us) ?? us;
}

export function drawScale(node, longest) {
  const ticks = [0, 0.25, 0.5, 0.75, 1].map((part) => [part, longest * part]);
  keep(node, ticks, ([part]) => part, ([part]) => {
    const label = el("span", { class: part === 0 ? "tick first" : part === 1 ? "tick last" : part === 0.5 ? "tick" : "tick between" });
    place(label, part * 100, 0);
    return { node: label, update: ([, us]) => say(label, us === 0 ? "0" : time(us)) };
  });
}

export function drawTransfers({ list, scale }, transfers, view, open) {
  const whole = view.bars === "whole";
  const longest = round(Math.max(1, ...transfers.map((transfer) => end(transfer, whole))));
  drawScale(scale, longest);
  show(scale, transfers.length > 0);
  keep(list, transfers, (transfer) => transfer.transfer_id, (transfer) => row(transfer, open));
  // What can hardly be seen on this scale gets no words.
  const at = { longest, whole, worth: view.order === "slowest" ? 200 : Math.max(longest / 20, 200) };
  for (const item of list.children) item.fill(at);
}

function row({ transfer_id }, open) {
  const part = (name) => el("span", { class: name });
  const [request, where, state, total, when, why] = ["request id", "where", "state", "total", "when", "why"].map(part);
  const bars = STAGES.map((stage) => el("span", { class: `part ${stage}` }));
  const track = el("span", { class: "track", "aria-hidden": "true" }, ...bars);
  const [start, tail] = [el("span"), el("span")];
  request.append(start, tail);
  const node = el("button", { type: "button", class: "row", "data-transfer": transfer_id }, request, where, state, total, track, when, why);
  node.addEventListener("click", () => open(transfer_id));
  const item = el("li", {}, node);
  let shown = null;
  item.fill = ({ longest, whole, worth }) => {
    const told = shown.failure || excess(shown) >= worth;
    const reason = told ? firstClause(shown.failure?.detail ?? shown.why.text) : "";
    say(why, reason);
    show(why, reason !== "");
    mark(why, shown.failure ? "why bad-text" : "why");
    const wanted = new Map(spans(shown, whole).map((span) => [span.stage, span]));
    STAGES.forEach((stage, at) => {
      const span = wanted.get(stage);
      show(bars[at], Boolean(span) && span.duration_us > 0);
      if (!span) return;
      place(bars[at], (100 * span.start_us) / longest, (100 * span.duration_us) / longest);
      mark(bars[at], `part ${stage}${span.running ? " running" : ""}`);
      bars[at].title = `${stage}: ${time(span.duration_us)}`;
    });
  };
  const update = (transfer) => {
    shown = transfer;
    say(start, transfer.request_id.slice(0, -TAIL));
    say(tail, transfer.request_id.slice(-TAIL));
    request.title = transfer.request_id;
    say(where, `rank ${transfer.dp_rank} ← ${transfer.source.address ?? transfer.source.engine_id}`);
    where.title = transfer.source.engine_id;
    mark(state, `state ${mood(transfer)}-text`);
    say(state, ending(transfer));
    say(total, time(transfer.total_us));
    say(when, ago(transfer.age_ms));
  };
  return { node: item, update };
}

// The rest is in the timeline.
function firstClause(text) {
  return text.split("; ")[0];
}
