// One transfer: its timeline, what its reads were, what is known of both ends.

import { el, facts, keep, mark, place, say, show, size, STAGE_WORDS, ago, time } from "./draw.js";
import { file, token } from "./source.js";
import { drawScale, ending, mood, outcome, round } from "./transfers.js";

export class Detail {
  constructor(dialog, title, body) {
    Object.assign(this, { dialog, title });
    this.head = el("p", { class: "detail-state" });
    this.why = el("p", { class: "why" });
    this.scale = el("div", { class: "scale", "aria-hidden": "true" });
    this.stages = el("ol", { class: "stages", "aria-label": "Timeline" });
    this.trace = el("a", { class: "button", text: "Save its trace" });
    this.trace.addEventListener("click", (event) => this.save(event));
    this.saved = el("p", { class: "quiet", role: "status" });
    this.shards = el("ul", { class: "cards" });
    this.shardsTitle = el("h3", { text: "Reads, one per TP shard" });
    this.facts = el("dl", { class: "facts wide" });
    const hint = el("span", { class: "quiet", text: " for ui.perfetto.dev or chrome://tracing" });
    this.known = el("div", {}, this.why, this.scale, this.stages, el("p", {}, this.trace, hint), this.saved, this.shardsTitle, this.shards, el("h3", { text: "Facts" }), this.facts);
    body.append(this.head, this.known);
  }

  open(id) {
    if (this.id !== id) {
      this.id = id;
      say(this.title, id);
      say(this.head, "asking the sidecar …");
      mark(this.head, "detail-state");
      say(this.saved, "");
      show(this.known, false);
    }
    if (!this.dialog.open) this.dialog.showModal();
  }

  close() {
    this.id = null;
    if (this.dialog.open) this.dialog.close();
  }

  missing(text) {
    say(this.head, text);
    mark(this.head, "detail-state bad-text");
  }

  draw(transfer) {
    if (transfer.transfer_id !== this.id) return;
    show(this.known, true);
    say(this.title, transfer.request_id);
    mark(this.head, `detail-state ${mood(transfer)}-text`);
    const before = transfer.failure ? "until it failed" : outcome(transfer) === "running" ? "so far" : "to the receipt";
    say(this.head, `${ending(transfer)} · ${time(transfer.total_us)} ${before} · asked for ${ago(transfer.age_ms)}`);
    say(this.why, transfer.why?.text ?? "");
    show(this.why, Boolean(transfer.why));
    this.timeline(transfer);
    this.trace.href = `v1/transfers/${encodeURIComponent(transfer.transfer_id)}/trace`;
    this.trace.download = `kvgate-${transfer.transfer_id}.json`;
    this.reads(transfer.read);
    this.ends(transfer);
  }

  timeline({ timeline, why }) {
    const longest = round(Math.max(1, ...timeline.map((span) => span.start_us + span.duration_us)));
    drawScale(this.scale, longest);
    keep(this.stages, timeline, (span) => span.stage, ({ stage }) => {
      const took = el("span", { class: "total" });
      const note = el("span", { class: "quiet" });
      const bar = el("span", { class: `part ${stage}` });
      const name = el("span", { class: "stage-name" }, el("span", { class: `swatch ${stage}`, "aria-hidden": "true" }), stage);
      const node = el("li", { title: STAGE_WORDS[stage] ?? "" }, name, took, el("span", { class: "track", "aria-hidden": "true" }, bar), note);
      const update = (span) => {
        place(bar, (100 * span.start_us) / longest, (100 * span.duration_us) / longest);
        mark(bar, `part ${stage}${span.running ? " running" : ""}`);
        say(took, time(span.duration_us));
        const words = [`from ${span.start_us === 0 ? "0" : time(span.start_us)}`];
        if (span.running) words.push("goes on");
        if (why?.stage === stage && why.peer_median_us != null) words.push(`this peer's median ${time(why.peer_median_us)}`);
        if (why?.stage === stage && why.others_median_us != null) words.push(`others' median ${time(why.others_median_us)}`);
        say(note, words.join(" · "));
      };
      return { node, update };
    });
  }

  reads(read) {
    show(this.shardsTitle, read.shards.length > 0);
    keep(this.shards, read.shards, (shard) => shard.tp_rank, ({ tp_rank }) => {
      const list = el("dl", { class: "facts" });
      const update = (shard) =>
        facts(list, [
          ["read", size(shard.bytes)],
          ["on the wire", `${time(shard.wire_us)}${rate(shard.bytes, shard.wire_us)}`],
          ["planned / posted", `${time(shard.planned_us)} / ${time(shard.post_call_us)}`],
          ["descriptors", `${shard.descriptors} for ${shard.pieces} pieces`],
          ["from agent", shard.agent],
        ]);
      return { node: el("li", {}, el("b", { text: `TP shard ${tp_rank}` }), list), update };
    });
  }

  ends(transfer) {
    const { source, read, receipt, failure } = transfer;
    const behind = read.queued_behind;
    facts(this.facts, [
      ["failure", failure && `${failure.code}: ${failure.detail} (retry: ${failure.retry.replaceAll("_", " ")})`],
      ["rank", transfer.dp_rank],
      ["collected by rank", transfer.collected_by],
      ["blocks", `${transfer.blocks} (${size(transfer.bytes)})`],
      ["staging when it asked", behind && `${behind.needed_blocks} slots wanted, ${behind.free_blocks} of ${behind.capacity_blocks} free, ${behind.transfers_ahead} ahead`],
      ["peer", source.engine_id],
      ["peer's side channel", source.address],
      ["peer was", { known: "known already", asked: "asked first by this transfer", waited: "being asked by another transfer" }[source.contact]],
      ["peer's request", source.request_id],
      ["lease left at receipt", receipt && `${time(receipt.source_lease_left_ms * 1000)}`],
      ["virtual request", transfer.virtual_request_id],
      ["freed by", transfer.freed?.replaceAll("_", " ")],
      ["transfer", transfer.transfer_id],
      ["attempt", transfer.attempt_id],
    ]);
  }

  // A plain link cannot carry the token.
  async save(event) {
    if (!token()) return;
    event.preventDefault();
    try {
      const url = URL.createObjectURL(await file(this.trace.getAttribute("href")));
      el("a", { href: url, download: this.trace.download }).click();
      setTimeout(() => URL.revokeObjectURL(url), 10_000);
      say(this.saved, "");
    } catch (error) {
      say(this.saved, `The trace could not be fetched: ${error.message}`);
    }
  }
}

function rate(bytes, us) {
  return us > 0 ? ` (${(bytes / us / 1000).toFixed(2)} GB/s)` : "";
}
