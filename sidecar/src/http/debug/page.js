// The page: what is chosen (kept in the address), what has been told, and when both are drawn.

import { ago, count, el, keep, mark, say, show, time } from "./draw.js";
import { Detail } from "./detail.js";
import { by, drawCauses, drawLatency, note, picked } from "./latency.js";
import { drawHandles, drawPeers } from "./others.js";
import { drawRanks, word } from "./ranks.js";
import { setToken, Source, token } from "./source.js";
import { drawLegend, drawTransfers, fits, outcome } from "./transfers.js";

const NOTHING = { rank: "", peer: "", outcome: "", find: "", order: "", bars: "", window: "", split: "", transfer: "" };
const ROWS = 25;
const MOST = 200;
// Asked for when rows are picked here and not by the sidecar.
const DEEP = 400;
const LATE = 4000;
const REDRAW = 150;

const $ = (id) => document.getElementById(id);
const view = { ...NOTHING };
const told = { ranks: new Map(), transfers: null, slowest: null, latency: null, totals: null, peers: null, handles: null, detail: null, version: null };
const troubles = new Map();
let most = ROWS;
let lastSeen = null;
let since = null;
let down = false;
let paused = false;
let locked = false;
let due = 0;

const detail = new Detail($("detail"), $("detail-title"), $("detail-body"));
const source = new Source({
  rank: (rank) => (told.ranks.set(rank.dp_rank, rank), redraw()),
  seen: () => {
    lastSeen = performance.now();
    if (down) (down = false), clock();
  },
  broken: () => ((down = true), clock()),
  unauthorized: lock,
  refused: (problem, path) => {
    if (problem.status === 404 && path.startsWith("v1/transfers/")) detail.missing("This sidecar does not have this transfer any more: it keeps the last 1024 of each rank.");
    else troubles.set(path.split("?")[0], problem.message), redraw();
  },
  answered: (path) => troubles.delete(path.split("?")[0]),
});

const keepTold = (name) => (answer) => ((told[name] = answer), redraw());
// A list with the question that it answers.
const keepList = (name) => ({ transfers }, path) => ((told[name] = { path, transfers }), redraw());
const listed = (more) => `v1/transfers?${new URLSearchParams({ ...(view.rank && { dp_rank: view.rank }), ...(view.outcome && view.outcome !== "running" && { state: view.outcome }), ...more })}`;
const recentPath = () => listed({ limit: deep() ? DEEP : most, why: true });
const slowestPath = () => listed({ slowest: deep() ? DEEP : most });
const deep = () => Boolean(view.peer || view.find || view.outcome === "running");
const latencyOf = (stages) => `v1/latency?window=${view.window || "60s"}&by=${[...by(view), ...stages].join(",")}`;

const questions = [
  source.ask(1000, recentPath, keepList("transfers")),
  source.ask(2000, () => (view.order === "slowest" ? slowestPath() : null), keepList("slowest")),
  source.ask(2000, () => latencyOf(["stage"]), keepTold("latency")),
  source.ask(2000, () => latencyOf([]), keepTold("totals")),
  source.ask(5000, () => "v1/peers", keepTold("peers")),
  source.ask(3000, () => "v1/handles?limit=200&block_limit=0", keepTold("handles")),
  source.ask(60_000, () => "version", keepTold("version")),
  source.ask(1000, oneTransfer, keepTold("detail")),
];

// A transfer that has ended says nothing new.
function oneTransfer() {
  if (!view.transfer) return null;
  const known = told.detail?.transfer_id === view.transfer ? told.detail : null;
  if (known && (known.state === "done" || known.state === "failed")) return null;
  return `v1/transfers/${encodeURIComponent(view.transfer)}`;
}

function redraw() {
  if (due) return;
  due = setTimeout(() => {
    due = 0;
    draw();
  }, REDRAW);
}

function draw() {
  const ranks = [...told.ranks.values()].sort((a, b) => a.dp_rank - b.dp_rank);
  drawRanks($("ranks"), ranks, (rank) => choose({ rank: view.rank === String(rank) ? "" : String(rank) }), view.rank);
  show($("no-ranks"), ranks.length === 0);
  options(ranks);
  drawTiles(ranks);
  rows();
  if (told.latency && told.totals) {
    drawCauses($("causes"), $("no-causes"), told.latency, choose);
    const groups = picked([...told.latency.groups, ...told.totals.groups], view);
    drawLatency($("latency"), groups, view);
    say($("latency-note"), note(groups, told.latency, view));
  }
  if (told.peers) drawPeers($("peers"), $("transport"), told.peers, (peer) => choose({ peer: view.peer === peer ? "" : peer }));
  if (told.handles) drawHandles($("handles"), $("handles-note"), told.handles, view);
  say($("trouble"), [...troubles].map(([path, message]) => `${path}: ${message}`).join(" · "));
  show($("trouble"), troubles.size > 0);
  if (told.detail) detail.draw(told.detail);
  if (told.version) {
    const { version, git_sha, nixl } = told.version;
    say($("build"), `${version} (${git_sha}) · NIXL ${nixl.version}${nixl.mock ? ", a mock" : ""}`);
  }
}

function rows() {
  const [list, path] = view.order === "slowest" ? [told.slowest, slowestPath()] : [told.transfers, recentPath()];
  const matching = (list?.transfers ?? []).filter((transfer) => fits(transfer, view));
  const shown = matching.slice(0, most);
  drawTransfers({ list: $("transfers"), scale: $("scale") }, shown, view, (transfer) => choose({ transfer }));
  show($("more"), matching.length >= most && most < MOST);
  const filtered = view.rank || view.peer || view.outcome || view.find;
  const role = [...told.ranks.values()].some((rank) => rank.virtual_engine_id) ? "" : " The sidecar beside the decode pod has them; this one has the block handles of its engine.";
  if (shown.length > 0) say($("shown"), `${count(shown.length, view.order === "slowest" ? "slow transfer" : "recent transfer")}${filtered ? " that fit" : ""}. Choose one for its timeline.`);
  else if (list?.path !== path) say($("shown"), "asking the sidecar …");
  else say($("shown"), filtered ? "No recent transfer fits." : `No transfer yet.${role}`);
}

function drawTiles(ranks) {
  const ready = ranks.filter((rank) => word(rank) === "ready").length;
  const flying = ranks.reduce((sum, rank) => sum + rank.in_flight, 0);
  const quarantined = ranks.reduce((sum, rank) => sum + rank.staging.quarantined_blocks, 0);
  const recent = told.transfers?.transfers ?? [];
  const failed = recent.filter((transfer) => outcome(transfer) === "failed").length;
  const leaked = (told.handles?.ranks ?? []).reduce((sum, rank) => sum + rank.leaked, 0);
  const totals = told.totals ? picked(told.totals.groups, view) : [];
  const worst = (figure) => (totals.length > 0 ? Math.max(...totals.map((group) => group[figure])) : null);
  const whose = view.split ? `, slowest ${view.split}` : "";
  const tiles = [
    ["ranks ready", `${ready} of ${ranks.length}`, ready < ranks.length || ranks.length === 0],
    ["in flight", String(flying), false],
    [`failed of ${recent.length} listed`, told.transfers ? String(failed) : "–", failed > 0],
    [`median to the receipt${whose}`, time(worst("p50_us")), false],
    [`99 % to the receipt${whose}`, time(worst("p99_us")), false],
  ];
  if (quarantined) tiles.push(["blocks in quarantine", String(quarantined), true]);
  if (leaked) tiles.push(["leaked handles", String(leaked), true]);
  keep($("tiles"), tiles.map((tile, at) => [at, ...tile]), ([at]) => at, () => {
    const [name, value] = [el("span", { class: "quiet" }), el("b")];
    const node = el("li", {}, value, name);
    return { node, update: ([, label, text, bad]) => (say(name, label), say(value, text), mark(node, bad ? "bad" : "")) };
  });
}

// Ranks and peers to choose from; what is chosen stays there even when nothing is known of it any more.
function options(ranks) {
  const { rank, peer } = $("filter").elements;
  const names = new Map();
  for (const known of told.peers?.peers ?? []) names.set(known.engine_id, known.address);
  for (const transfer of told.transfers?.transfers ?? []) names.set(transfer.source.engine_id, transfer.source.address ?? names.get(transfer.source.engine_id));
  if (view.peer && !names.has(view.peer)) names.set(view.peer, undefined);
  const numbers = new Set(ranks.map((known) => String(known.dp_rank)));
  if (view.rank) numbers.add(view.rank);
  choices(rank, [...numbers].map((number) => [number, number]));
  choices(peer, [...names].map(([id, address]) => [id, address ? `${address} · ${id}` : id]));
  rank.value = view.rank;
  peer.value = view.peer;
}

function choices(select, wanted) {
  const known = new Map([...select.options].map((option) => [option.value, option]));
  for (const [value, label] of wanted) {
    if (!known.has(value)) select.append(el("option", { value, text: label }));
    else say(known.get(value), label);
    known.delete(value);
  }
  for (const [value, option] of known) if (value) option.remove();
}

function choose(change) {
  Object.assign(view, change);
  const chosen = Object.entries(view).filter(([, value]) => value);
  history.replaceState(null, "", `#${new URLSearchParams(chosen)}`);
  apply();
}

function fromAddress() {
  const asked = new URLSearchParams(location.hash.slice(1));
  for (const name of Object.keys(NOTHING)) view[name] = asked.get(name) ?? "";
  if (view.window && !["15s", "30s", "120s"].includes(view.window)) view.window = "";
  if (!/^\d*$/.test(view.rank)) view.rank = "";
  if (!["", "running", "landed", "done", "failed"].includes(view.outcome)) view.outcome = "";
  apply();
}

function apply() {
  for (const form of [$("filter"), $("latency-form")]) {
    for (const control of form.elements) if (control.name && control.value !== view[control.name]) control.value = view[control.name];
  }
  if (view.transfer) {
    detail.open(view.transfer);
    const known = [...(told.transfers?.transfers ?? []), ...(told.slowest?.transfers ?? [])].find((transfer) => transfer.transfer_id === view.transfer);
    if (known && told.detail?.transfer_id !== view.transfer) detail.draw(known);
  } else {
    detail.close();
  }
  questions.forEach((question) => question.wake());
  draw();
}

function clock() {
  const age = lastSeen === null ? null : performance.now() - lastSeen;
  // After a pause or a hidden tab, silence counts from when it was asked again.
  const silent = since !== null && performance.now() - Math.max(lastSeen ?? 0, since) > LATE;
  const lost = !paused && !locked && (down || silent);
  const [text, mood] = locked ? ["token wanted", "bad"] : paused ? ["paused", "wait"] : lost ? ["connection lost", "bad"] : age === null ? ["connecting", "wait"] : ["live", "good"];
  say($("connection"), text);
  mark($("connection"), `pill ${mood}`);
  say($("age"), age === null ? "" : `last update ${ago(age)}`);
  const then = age === null ? "it has not answered yet" : `last update ${ago(age)}; what is below is as it was then`;
  say($("lost"), lost ? `Connection lost: the sidecar at ${location.host} does not answer (${then}). Trying again every second.` : "");
  show($("lost"), lost);
  mark(document.body, lost || paused ? "stale" : "");
}

function lock() {
  if (locked) return;
  locked = true;
  source.stop();
  if (token()) say($("login-why"), "The sidecar does not accept this token. It must be the line in its --token-file.");
  setToken("");
  show($("login"), true);
  $("token").focus();
  clock();
}

$("login").addEventListener("submit", (event) => {
  event.preventDefault();
  setToken($("token").value.trim());
  $("token").value = "";
  show($("login"), false);
  locked = false;
  run();
});

// Nobody looks at a hidden tab, and a paused page stands still.
function run() {
  if (paused || locked || document.hidden) {
    source.stop();
    down = false;
    since = null;
  } else {
    source.start();
    since ??= performance.now();
  }
  clock();
}

for (const form of [$("filter"), $("latency-form")]) {
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("input", (event) => choose({ [event.target.name]: event.target.value }));
  form.addEventListener("reset", (event) => {
    event.preventDefault();
    choose({ rank: "", peer: "", outcome: "", find: "", order: "", bars: "" });
  });
}
$("pause").addEventListener("click", () => {
  paused = !paused;
  $("pause").setAttribute("aria-pressed", String(paused));
  run();
});
$("more").addEventListener("click", () => {
  most = Math.min(most * 2, MOST);
  questions.forEach((question) => question.wake());
  draw();
});
// A jump within the page is not a view of it.
$("skip").addEventListener("click", (event) => {
  event.preventDefault();
  $("transfers-title").focus();
});
$("detail-close").addEventListener("click", () => detail.close());
$("detail").addEventListener("close", () => view.transfer && choose({ transfer: "" }));
$("detail").addEventListener("click", (event) => event.target === $("detail") && detail.close());
addEventListener("hashchange", fromAddress);
document.addEventListener("visibilitychange", run);
setInterval(clock, 1000);

say($("host"), location.host);
document.title = `kvgate sidecar ${location.host}`;
drawLegend($("legend"));
fromAddress();
run();
