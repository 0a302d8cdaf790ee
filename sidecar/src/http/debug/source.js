// Asks the sidecar: each kind of question at most once a second, and nothing at all while nobody looks.

const TOKEN = "kvgate-token";
const GAP = 1000;
const ANSWER_WITHIN = 8000;
// The event stream says something every quarter of a second, if only that it is there.
const SILENCE = 4000;

export class Refused extends Error {
  constructor(status, problem) {
    super(problem.detail ?? `the sidecar answered ${status}`);
    this.status = status;
    this.code = problem.code;
  }
}

export function token() {
  return sessionStorage.getItem(TOKEN) ?? "";
}

export function setToken(text) {
  if (text) sessionStorage.setItem(TOKEN, text);
  else sessionStorage.removeItem(TOKEN);
}

async function ask(path, signal) {
  const headers = token() ? { authorization: `Bearer ${token()}` } : {};
  const response = await fetch(path, { headers, signal, cache: "no-store" });
  if (response.ok) return response;
  throw new Refused(response.status, await response.json().catch(() => ({})));
}

export async function file(path) {
  return (await ask(path, AbortSignal.timeout(ANSWER_WITHIN))).blob();
}

// One kind of question. `path` says what to ask now, or nothing; `told` takes the answer.
class Question {
  constructor(every, path, told) {
    Object.assign(this, { every, path, told, wake: () => {}, asked: -Infinity });
  }
}

// All questions and the event stream; started and stopped together. The listener is told of ranks, of every sign of life (seen), of each
// question's answer (answered) or refusal (refused, unauthorized), and of a connection that failed (broken).
export class Source {
  constructor(listener) {
    Object.assign(this, listener);
    this.questions = [];
    this.running = null;
  }

  ask(every, path, told) {
    const question = new Question(Math.max(every, GAP), path, told);
    this.questions.push(question);
    return question;
  }

  start() {
    if (this.running) return;
    this.running = new AbortController();
    const { signal } = this.running;
    for (const question of this.questions) this.repeat(question, signal);
    this.follow(signal);
  }

  stop() {
    this.running?.abort();
    this.running = null;
  }

  async repeat(question, signal) {
    while (!signal.aborted) {
      await pause(Math.max(question.asked + GAP - performance.now(), 0), signal);
      const path = question.path();
      if (signal.aborted) return;
      if (path) {
        question.asked = performance.now();
        const within = AbortSignal.any([signal, AbortSignal.timeout(ANSWER_WITHIN)]);
        try {
          const answer = await (await ask(path, within)).json();
          if (signal.aborted) return;
          this.seen();
          this.answered(path);
          question.told(answer, path);
        } catch (error) {
          if (signal.aborted) return;
          this.failed(error, path);
        }
      }
      await pause(question.every, signal, question);
    }
  }

  async follow(signal) {
    while (!signal.aborted) {
      const silent = new AbortController();
      try {
        let watch = setTimeout(() => silent.abort(), SILENCE);
        const response = await ask("v1/ranks/events", AbortSignal.any([signal, silent.signal]));
        const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
        let text = "";
        for (;;) {
          const { done, value } = await reader.read();
          clearTimeout(watch);
          if (done) break;
          watch = setTimeout(() => silent.abort(), SILENCE);
          this.seen();
          this.answered("v1/ranks/events");
          const events = (text + value).split("\n\n");
          text = events.pop();
          events.forEach((event) => this.event(event));
        }
      } catch (error) {
        if (signal.aborted) return;
        this.failed(error, "v1/ranks/events");
      }
      await pause(GAP, signal);
    }
  }

  event(text) {
    const lines = text.split("\n").filter((line) => line.startsWith("data:"));
    const data = lines.map((line) => line.slice(5).trimStart()).join("\n");
    if (data) this.rank(JSON.parse(data));
  }

  failed(error, path) {
    if (!(error instanceof Refused)) return this.broken();
    this.seen();
    if (error.status === 401) return this.unauthorized();
    return this.refused(error, path);
  }
}

function pause(ms, signal, question) {
  return new Promise((resolve) => {
    const over = () => {
      clearTimeout(timer);
      signal.removeEventListener("abort", over);
      resolve();
    };
    const timer = setTimeout(over, ms);
    signal.addEventListener("abort", over);
    if (question) question.wake = over;
  });
}
