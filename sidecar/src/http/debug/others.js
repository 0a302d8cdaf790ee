// Peers and block handles, in words.

import { ago, count, el, facts, keep, left, mark, say, show, size, time } from "./draw.js";

const SHOWN = 40;

export function drawPeers(list, note, { peers, transport }, pick) {
  say(note, peers.length === 0 ? "No peer has been read from yet." : (transport?.text ?? ""));
  show(note, note.textContent !== "");
  keep(list, peers, (peer) => `${peer.dp_rank} ${peer.engine_id}`, (peer) => {
    const name = el("button", { type: "button", class: "name", text: peer.address ?? peer.engine_id, title: "Show only this peer's transfers" });
    name.addEventListener("click", () => pick(peer.engine_id));
    const error = el("p", { class: "bad-text" });
    const known = el("dl", { class: "facts" });
    const update = (now) => {
      const trouble = now.last_error;
      say(error, trouble ? `${trouble.code}, ${ago(trouble.age_ms)}: ${trouble.detail}` : "");
      show(error, Boolean(trouble));
      facts(known, [
        ["engine", now.engine_id],
        ["transfers", `${now.transfers}${now.transfers_failed ? `, ${now.transfers_failed} failed` : ""}`],
        ["moved", size(now.bytes)],
        ["handshake", now.handshake_age_ms == null ? "none yet" : `${ago(now.handshake_age_ms)}, took ${time(now.handshake_took_us)}`],
        ["handshakes", `${now.handshakes}${now.handshakes_failed ? `, ${now.handshakes_failed} failed` : ""}`],
        ["last used", ago(now.last_used_age_ms)],
      ]);
    };
    return { node: el("li", {}, el("div", { class: "head" }, name, el("span", { class: "quiet", text: `for rank ${peer.dp_rank}` })), error, known), update };
  });
}

export function drawHandles(list, note, answer, view) {
  const handles = answer.handles.filter((handle) => !view.rank || String(handle.dp_rank) === view.rank);
  const urgent = (handle) => (handle.state === "leaked" ? 0 : 1);
  const shown = handles.toSorted((a, b) => urgent(a) - urgent(b)).slice(0, SHOWN);
  const leaked = answer.ranks.reduce((sum, rank) => sum + rank.leaked, 0);
  const words = [answer.total === 0 ? "None: no blocks are held for a request." : `${count(answer.total, "handle")} in all`];
  if (shown.length < answer.total) words.push(`${shown.length} shown`);
  if (leaked) words.push(`${leaked} leaked: their lease is over and nobody said that they were read`);
  if (answer.unanswered_ranks.length > 0) words.push(`no answer from rank ${answer.unanswered_ranks.join(", ")}`);
  say(note, words.join(", "));
  mark(note, leaked ? "bad-text" : "quiet");
  keep(list, shown, (handle) => `${handle.dp_rank} ${handle.remote_request_id}`, () => {
    const [request, state] = [el("span", { class: "id" }), el("span")];
    const known = el("dl", { class: "facts" });
    const update = (handle) => {
      say(request, handle.remote_request_id);
      mark(state, `pill ${handle.state === "leaked" ? "bad" : "wait"}`);
      say(state, handle.state);
      facts(known, [
        ["rank", handle.dp_rank],
        ["blocks", `${handle.blocks} (${size(handle.bytes)})`],
        ["lease", left(handle.lease_left_ms)],
        ["transfer", handle.transfer_id],
      ]);
    };
    return { node: el("li", {}, el("div", { class: "head" }, request, state), known), update };
  });
}
