"""Progress lines, and the one exception that means "this cannot go on"."""

import time

START = time.monotonic()


class Failure(Exception):
    """Says what was tried; printed without a traceback."""


def since_start():
    return time.monotonic() - START


def say(text):
    print(f"chaos: {since_start():5.1f} s  {text}", flush=True)


def tail(path, lines=15):
    """The end of a log, indented."""
    try:
        text = path.read_text(errors="replace")
    except OSError as error:
        return f"  (no log: {error})"
    return "\n".join("  " + line[:400] for line in text.splitlines()[-lines:])
