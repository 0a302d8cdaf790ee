"""Where the programs are that the checks run, and how they are run."""

import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
TOOLS = ROOT / "target" / "deploy-tools"
SCHEMAS = TOOLS / "schemas"
CHART = ROOT / "deploy" / "helm" / "kvgate"
HELMS = (TOOLS / "helm", TOOLS / "helm3")
KVGATE = ROOT / "target" / "debug" / "kvgate"
PROMTOOL = ROOT / "target" / "promtool" / "promtool"


def require():
    """Ends when something is missing: a check that is skipped is no check."""
    needed = [*HELMS, TOOLS / "hadolint", TOOLS / "shellcheck", SCHEMAS, KVGATE, PROMTOOL]
    missing = [str(path.relative_to(ROOT)) for path in needed if not path.exists()]
    if missing:
        sys.exit(f"deploy-check: not there: {', '.join(missing)}; make deploy-check fetches and builds them")


def run(command, **options):
    """(exit code, what it said)."""
    done = subprocess.run(
        [str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120, check=False, **options
    )
    return done.returncode, done.stdout.strip()
