"""Copies the NIXL runtime out of this Python environment's wheel: copy-nixl.py DESTINATION [SITE_PACKAGES].

An init container with the vLLM image runs it, so that the sidecar loads the very NIXL that its engine loads and no image of ours
carries NVIDIA's files; the Dockerfile runs it with NIXL=wheel. Only what a sidecar needs comes along: the C library, the libraries that
the wheel bundles, and of NIXL's plug-ins UCX. DESTINATION/lib is what KVGATE_NIXL_LIBRARY names. Python's own library only.
"""

import importlib.metadata
import pathlib
import re
import shutil
import sys

KEPT_PLUGIN = "libplugin_UCX.so"


def fail(message):
    sys.exit(f"copy-nixl: {message}")


def torchs_cuda():
    """The CUDA major that torch was built for, or None: of two NIXL wheels the engine loads that one."""
    try:
        found = re.search(r"\+cu(\d\d)", importlib.metadata.version("torch"))
    except importlib.metadata.PackageNotFoundError:
        return None
    return found[1] if found else None


def wheels(sites):
    """(CUDA major, folder of the C library) of every NIXL wheel in these folders."""
    for site in sites:
        for folder in sorted(pathlib.Path(site).glob(".nixl_cu*.mesonpy.libs")):
            if (folder / "libnixl_capi.so").exists():
                yield re.fullmatch(r"\.nixl_cu(\d+)\.mesonpy\.libs", folder.name)[1], folder


def chosen(found):
    wanted = torchs_cuda()
    for cuda, folder in found:
        if cuda == wanted:
            return cuda, folder
    return max(found, key=lambda one: int(one[0]))


def main():
    if len(sys.argv) not in (2, 3):
        fail("usage: copy-nixl.py DESTINATION [SITE_PACKAGES]")
    sites = sys.argv[2:] or [path for path in sys.path if path]
    found = list(wheels(sites))
    if not found:
        fail("no NIXL wheel (nixl-cu12, nixl-cu13) in " + ", ".join(sites) + ": this image cannot do prefill/decode over NIXL; take one with NIXL")
    cuda, library = chosen(found)
    bundled = library.parent / f"nixl_cu{cuda}.libs"
    if not bundled.is_dir():
        fail(f"{library} has no {bundled.name} beside it: not a wheel of NIXL as PyPI has it")
    destination = pathlib.Path(sys.argv[1])
    destination.mkdir(parents=True, exist_ok=True)

    def unwanted(folder, names):
        if pathlib.Path(folder).name not in ("nixl", "plugins"):
            return []
        return [name for name in names if name.startswith(("libplugin_", "libtelemetry_", "libtrace_")) and name != KEPT_PLUGIN]

    # The wheel's own name and version lie beside it: `kvgate doctor` and the log tell them.
    for folder in (library, bundled, *library.parent.glob(f"nixl_cu{cuda}-*.dist-info")):
        # A container that is started again finds what the last one left.
        shutil.rmtree(destination / folder.name, ignore_errors=True)
        shutil.copytree(folder, destination / folder.name, symlinks=True, ignore=unwanted)
    link = destination / "lib"
    link.unlink(missing_ok=True)
    link.symlink_to(library.name)
    size = sum(path.stat().st_size for path in destination.rglob("*") if path.is_file() and not path.is_symlink())
    print(f"copy-nixl: {library.parent} (CUDA {cuda}) to {destination}: {size >> 20} MiB", flush=True)


if __name__ == "__main__":
    main()
