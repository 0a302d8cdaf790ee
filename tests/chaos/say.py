"""Progress lines, and what all harnesses share (tests/support/harness.py)."""

import pathlib
import sys
import time

sys.path.append(str(pathlib.Path(__file__).resolve().parents[1] / "support"))
from harness import Failure, free_ports, tail  # noqa: E402,F401

START = time.monotonic()


def since_start():
    return time.monotonic() - START


def say(text):
    print(f"chaos: {since_start():5.1f} s  {text}", flush=True)
