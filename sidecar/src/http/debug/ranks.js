// The ranks as cards: ready or why not, staging, what is in flight.

import { count, el, facts, keep, mark, place, say, show, size } from "./draw.js";

const SIGN = { ready: "✓", degraded: "!", gone: "✕", handshaking: "…", unknown: "?", draining: "▽" };
const MOOD = { ready: "good", degraded: "bad", gone: "bad", handshaking: "wait", unknown: "wait", draining: "wait" };

export function word(rank) {
  return rank.draining ? "draining" : rank.state;
}

export function drawRanks(list, ranks, pick, chosen) {
  keep(list, ranks, (rank) => rank.dp_rank, (rank) => card(rank, pick));
  for (const node of list.children) node.querySelector(".name").setAttribute("aria-pressed", String(node.dataset.rank === chosen));
}

function card({ dp_rank }, pick) {
  const name = el("button", { type: "button", class: "name", text: `rank ${dp_rank}`, title: "Show only this rank's transfers" });
  name.addEventListener("click", () => pick(dp_rank));
  const pill = el("span");
  const reasons = el("ul", { class: "reasons" });
  const parts = ["used", "zeroing", "quarantined"].map((part) => el("span", { class: `part ${part}` }));
  const bar = el("div", { class: "bar", "aria-hidden": "true" }, ...parts);
  const staging = el("p", { class: "staging" });
  const list = el("dl", { class: "facts run" });
  const node = el("li", { "data-rank": dp_rank }, el("div", { class: "head" }, name, pill), reasons, bar, staging, list);
  return { node, update: (rank) => update(rank, { node, pill, reasons, bar, parts, staging, list }) };
}

function update(rank, { node, pill, reasons, bar, parts, staging, list }) {
  const state = word(rank);
  mark(node, `rank ${MOOD[state] ?? "wait"}`);
  mark(pill, `pill ${MOOD[state] ?? "wait"}`);
  say(pill, `${SIGN[state] ?? "?"} ${state}`);
  const why = rank.draining ? ["draining: takes no new work", ...rank.reasons] : rank.reasons;
  keep(reasons, why.map((text, at) => [at, text]), ([at]) => at, () => {
    const line = el("li");
    return { node: line, update: ([, text]) => say(line, text) };
  });
  const { capacity_blocks: capacity, zeroing_blocks, quarantined_blocks, used_blocks, block_bytes } = rank.staging;
  show(bar, capacity > 0);
  show(staging, capacity > 0);
  if (capacity > 0) {
    let from = 0;
    // Those that are zeroed count among the used ones.
    [used_blocks - zeroing_blocks, zeroing_blocks, quarantined_blocks].forEach((blocks, part) => {
      const width = (100 * blocks) / capacity;
      show(parts[part], blocks > 0);
      place(parts[part], from, width);
      from += width;
    });
    const words = [`staging ${used_blocks} of ${count(capacity, "block")} used (${size(capacity * block_bytes)})`];
    if (zeroing_blocks) words.push(`${zeroing_blocks} being zeroed`);
    if (quarantined_blocks) words.push(`${quarantined_blocks} in quarantine`);
    say(staging, words.join(", "));
    mark(staging, quarantined_blocks ? "staging bad-text" : "staging");
  }
  const { load } = rank;
  const lost = load.nixl_failed + load.nixl_expired;
  facts(list, [
    ["in flight", rank.in_flight],
    ["handles", rank.handles],
    ["engine runs", load.running],
    ["waits", load.waiting],
    ["KV cache", `${(100 * load.kv_usage).toFixed(load.kv_usage < 0.1 ? 1 : 0)} %`],
    ["failed or expired in NIXL", lost || undefined],
    ["vLLM", rank.engine_version],
  ]);
}
