"""Progress lines, and the one exception that means "this cannot go on"."""

import sys
import time

START = time.monotonic()


class Failure(Exception):
    """Says what was tried; the harness prints it without a traceback."""


def progress(text):
    print(f"test-vllm: {time.monotonic() - START:5.0f} s  {text}", flush=True)


def problem(text):
    print(f"test-vllm: {text}", file=sys.stderr, flush=True)


def tail(path, lines=25):
    """The end of a log, indented."""
    try:
        text = path.read_text(errors="replace")
    except OSError as error:
        return f"  (no log: {error})"
    return "\n".join("  " + line[:400] for line in text.splitlines()[-lines:])


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
