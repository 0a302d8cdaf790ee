"""Progress lines, and what all harnesses share (tests/support/harness.py)."""

import pathlib
import sys
import time

sys.path.append(str(pathlib.Path(__file__).resolve().parents[1] / "support"))
from harness import Failure, free_ports, tail  # noqa: E402,F401

START = time.monotonic()


def progress(text):
    print(f"test-vllm: {time.monotonic() - START:5.0f} s  {text}", flush=True)


def problem(text):
    print(f"test-vllm: {text}", file=sys.stderr, flush=True)


def grumbles(path, lines=6):
    """The last warnings and errors of a log, indented; an empty text when there are none."""
    try:
        text = path.read_text(errors="replace")
    except OSError:
        return ""
    words = (" WARN ", " ERROR ", "Error:", "AssertionError", "Traceback", "expired KV", "invalid KV")
    wanted = [line for line in text.splitlines() if any(word in line for word in words)]
    found = [line for line in wanted if "fault injection is on" not in line and "ulimit" not in line]
    return "\n".join("  " + line[:300] for line in found[-lines:])
