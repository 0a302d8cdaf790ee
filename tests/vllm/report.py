"""What was checked and what came out, kept for target/vllm/report.json."""

import json

from say import problem, progress


class Report:
    """Counts every comparison; a failed one is printed at once and listed at the end."""

    def __init__(self, vllm):
        self.data = {
            "vllm": vllm,
            "requests": 0,
            "equal": 0,
            "rank_pairs": 0,
            "control_zeroed_differs": False,
            "kill_cases": [],
            "bench_serve": {},
            "ttft_ratio": None,
            "pinned_ratio": None,
            "lease": {},
        }
        self.failures = []

    def check(self, name, good, note=""):
        """One fact that must hold."""
        if good:
            progress(f"ok    {name}{'  ' + note if note else ''}")
        else:
            self.failures.append(f"{name}  {note}".strip())
            problem(f"FAIL  {name}  {note}")
        return bool(good)

    def equal(self, name, answer, reference):
        """One gated request against the text and the token counts of the same vLLM without P/D."""
        self.data["requests"] += 1
        if answer.same_as(reference):
            self.data["equal"] += 1
            return True
        note = f"{answer.brief()} {answer.usage} wanted {reference.brief()} {reference.usage}"
        self.failures.append(f"{name}: {note}")
        problem(f"FAIL  {name}: {note}")
        return False

    def write(self, path, seconds):
        """The report as JSON; true when everything held."""
        data = self.data
        data["seconds"] = round(seconds)
        enough = data["requests"] >= 40 and data["equal"] == data["requests"] and data["rank_pairs"] == 4
        if not self.failures and not enough:
            self.failures.append(f"only {data['requests']} requests over {data['rank_pairs']} rank pairs were compared")
        data["ok"] = not self.failures
        data["failures"] = self.failures
        path.write_text(json.dumps(data, indent=1) + "\n")
        return data["ok"]
