#!/usr/bin/env python3
"""Takes away what protects a promise, in a copy of the tree, and sees the promise's test fail.

Each PATCH beside this file removes one protection and names the test that must notice. Without a removal all of them must pass.
`run.py [NAME...]`; builds in target/removals. Ends with 1 when a test does not fail, or fails by itself.
"""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HERE = ROOT / "target" / "removals"
TREE, BUILD = HERE / "tree", HERE / "build"
# The longest that building and running one test may take, in seconds.
LIMIT = 1800


@dataclass
class Removal:
    name: str
    removed: str
    test: str
    run: str
    patch: Path

    @property
    def function(self) -> str:
        return self.test.split("::")[-1]

    @property
    def files(self) -> list[str]:
        return re.findall(r"^\+\+\+ b/(\S+)", self.patch.read_text(), re.M)


def removals(names: list[str]) -> list[Removal]:
    found = []
    for patch in sorted(Path(__file__).parent.glob("*.patch")):
        said = dict(re.findall(r"^(Removed|Test|Run): (.+)$", patch.read_text(), re.M))
        found.append(Removal(patch.stem, said["Removed"], said["Test"], said["Run"], patch))
    unknown = set(names) - {removal.name for removal in found}
    if unknown:
        sys.exit(f"no such removal: {', '.join(sorted(unknown))}")
    return [removal for removal in found if not names or removal.name in names]


def copy_tree() -> None:
    """What git knows or would take. Files that have not changed keep their times, so that cargo has little to do."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    )
    names = {name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()}
    for name in names:
        restore(name)
    for path in list(TREE.rglob("*")):
        if path.is_file() and str(path.relative_to(TREE)) not in names:
            path.unlink()


def restore(name: str) -> None:
    ours, copied = ROOT / name, TREE / name
    if copied.exists() and copied.read_bytes() == ours.read_bytes():
        return
    copied.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(ours, copied)


def cargo(run: str, tests: list[str]) -> tuple[int, str]:
    command = [os.environ.get("CARGO", "cargo"), "test", "--locked", *run.split(), "--", "--test-threads=1", *tests]
    env = os.environ | {"CARGO_TARGET_DIR": str(BUILD), "RUST_BACKTRACE": "0", "REQUIRE": ""}
    try:
        done = subprocess.run(command, cwd=TREE, env=env, capture_output=True, text=True, timeout=LIMIT, check=False)
    except subprocess.TimeoutExpired:
        return 1, "it has no end"
    return done.returncode, done.stdout + done.stderr


def all_pass(chosen: list[Removal]) -> bool:
    """Without a removal."""
    good = True
    for run in sorted({removal.run for removal in chosen}):
        tests = [removal.function for removal in chosen if removal.run == run]
        code, output = cargo(run, tests)
        ran = [test for test in tests if re.search(rf"^test \S*{test} \.\.\. ok", output, re.M)]
        if code != 0 or len(ran) != len(tests):
            print(output[-3000:])
            print(f"without a removal: cargo test {run}: {len(ran)} of {len(tests)} pass")
            good = False
    return good


def how_it_fails(removal: Removal) -> str | None:
    """The first words of the failed test; None when it does not fail."""
    # Without a repository above it, so that paths are the copy's.
    env = os.environ | {"GIT_CEILING_DIRECTORIES": str(HERE)}
    subprocess.run(["git", "apply", str(removal.patch)], cwd=TREE, env=env, check=True)
    try:
        _, output = cargo(removal.run, [removal.function])
    finally:
        for name in removal.files:
            restore(name)
    if not re.search(rf"^test \S*{removal.function} \.\.\. FAILED", output, re.M):
        print(output[-3000:])
        return None
    words = re.search(r"panicked at [^\n]+\n((?:[^\n]+\n){1,3})", output)
    return " ".join(words[1].split("note: ")[0].split())[:100] if words else "it fails"


def main() -> int:
    chosen = removals(sys.argv[1:])
    copy_tree()
    if not all_pass(chosen):
        return 1
    print("| removal | what is removed | the test that fails | how |\n|---|---|---|---|", flush=True)
    unnoticed = []
    for removal in chosen:
        how = how_it_fails(removal)
        if how is None:
            unnoticed.append(removal.name)
        words = (how or "NOT AT ALL").replace("|", "\\|")
        print(f"| {removal.name} | {removal.removed} | `{removal.test}` | {words} |", flush=True)
    print(f"\n{len(chosen) - len(unnoticed)} of {len(chosen)} removals are noticed")
    return 1 if unnoticed else 0


if __name__ == "__main__":
    sys.exit(main())
