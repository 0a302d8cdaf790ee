// Elements and words. Everything that comes from outside goes in as text, never as markup.

export const STAGES = ["queued", "handshake", "post", "wire", "verify", "landed_idle", "collect"];
export const BEFORE_RECEIPT = 5;

export const STAGE_WORDS = {
  queued: "waits for staging",
  handshake: "asks the peer's side channel",
  post: "plans and posts the read",
  wire: "bytes move",
  verify: "checks before the receipt",
  landed_idle: "landed, not yet collected",
  collect: "the engine collects",
};

// An element with properties (class, text, attributes) and children; strings become text.
export function el(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name === "text") node.textContent = value;
    else if (name === "class") node.className = value;
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value != null) node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

// Writes only what changed: a selection in the page and a reader's place in it survive.
export function say(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

export function mark(node, name) {
  if (node.className !== name) node.className = name;
}

export function show(node, visible) {
  if (node.hidden === visible) node.hidden = !visible;
}

// Where a bar lies, in hundredths of its track.
export function place(node, from, width) {
  node.style.left = `${from.toFixed(3)}%`;
  node.style.width = `${width.toFixed(3)}%`;
}

const lists = new WeakMap();

// Makes a list's children those of `items`, each made once and then updated, so that focus stays where it is.
export function keep(parent, items, key, make) {
  const known = lists.get(parent) ?? new Map();
  lists.set(parent, known);
  const wanted = new Set(items.map(key));
  for (const [name, entry] of known) {
    if (!wanted.has(name)) {
      entry.node.remove();
      known.delete(name);
    }
  }
  const focused = document.activeElement;
  let next = parent.firstChild;
  for (const item of items) {
    const name = key(item);
    let entry = known.get(name);
    if (!entry) known.set(name, (entry = make(item)));
    entry.update(item);
    if (entry.node === next) next = next.nextSibling;
    else parent.insertBefore(entry.node, next);
  }
  if (focused !== document.activeElement && parent.contains(focused)) focused.focus({ preventScroll: true });
}

// Facts as terms and values, leaving out what is not known.
export function facts(list, pairs) {
  const known = pairs.filter(([, value]) => value !== undefined && value !== null && value !== "");
  keep(list, known, ([term]) => term, () => {
    const [term, value] = [el("dt"), el("dd")];
    return {
      node: el("div", {}, term, value),
      update: ([word, told]) => (say(term, word), say(value, String(told))),
    };
  });
}

export function time(us) {
  if (us == null) return "–";
  if (us < 1000) return `${Math.round(us)} µs`;
  if (us < 9950) return `${(us / 1000).toFixed(1)} ms`;
  if (us < 999500) return `${Math.round(us / 1000)} ms`;
  if (us < 59.95e6) return `${(us / 1e6).toFixed(us < 9.95e6 ? 2 : 1)} s`;
  return span(us / 1e6);
}

function span(seconds) {
  const whole = Math.floor(seconds);
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return whole < 600 ? `${Math.floor(whole / 60)} min ${whole % 60} s` : `${Math.floor(whole / 60)} min`;
  if (whole < 86400) return `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`;
  return `${Math.floor(whole / 86400)} d ${Math.floor((whole % 86400) / 3600)} h`;
}

export function ago(ms) {
  return ms == null ? "–" : `${span(ms / 1000)} ago`;
}

export function left(ms) {
  return ms > 0 ? `${span(ms / 1000)} left` : "over";
}

export function size(bytes) {
  const units = ["bytes", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (bytes >= 1024 && unit < units.length - 1) {
    bytes /= 1024;
    unit += 1;
  }
  return `${unit === 0 || bytes >= 100 ? Math.round(bytes) : bytes.toFixed(1)} ${units[unit]}`;
}

export function count(number, one, many = `${one}s`) {
  return `${number} ${number === 1 ? one : many}`;
}
