"""What the binary is built from: sbom.py METADATA VERSION SBOM LICENCES EPOCH, out of `cargo metadata`; CycloneDX 1.5 and a text.

Only what is linked counts: normal dependencies of the package kvgate, for the platform that the metadata was filtered for.

Why not cargo-cyclonedx: it writes a random serial number and the time of day, so the same source gives another tarball each time
(CycloneDX/cyclonedx-rust-cargo#514), a BOM beside every Cargo.toml of the workspace, and no texts of licences, which have to be handed on with the
binary. They need the same walk over the same packages, so SBOM and THIRD-PARTY.txt come out of one, and no tool has to be built first.
scripts/dist-check holds the outcome against CycloneDX's own schema.
"""

import datetime
import json
import pathlib
import sys

NAMES = ("licen", "copying", "notice", "copyright")


def linked(metadata):
    """The packages that the binary is linked from, its own workspace's among them."""
    nodes = {node["id"]: node for node in metadata["resolve"]["nodes"]}
    packages = {package["id"]: package for package in metadata["packages"]}
    start = next(identity for identity, package in packages.items() if package["name"] == "kvgate" and package["source"] is None)
    seen, todo = set(), [start]
    while todo:
        identity = todo.pop()
        if identity in seen:
            continue
        seen.add(identity)
        for dependency in nodes[identity]["deps"]:
            if any(kind["kind"] is None for kind in dependency["dep_kinds"]):
                todo.append(dependency["pkg"])
    return sorted((packages[identity] for identity in seen), key=lambda package: (package["name"], package["version"]))


def component(package):
    # Cargo's own id of a workspace's package is a path of this machine.
    reference = f"{package['name']}@{package['version']}"
    found = {"type": "library", "name": package["name"], "version": package["version"], "bom-ref": reference}
    if package["source"]:
        found["purl"] = f"pkg:cargo/{package['name']}@{package['version']}"
    if package["license"]:
        found["licenses"] = [{"expression": package["license"].replace("/", " OR ")}]
    return found


def bom(packages, version, epoch):
    when = datetime.datetime.fromtimestamp(int(epoch), datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {"timestamp": when, "component": {"type": "application", "name": "kvgate", "version": version}},
        "components": [component(package) for package in packages if package["name"] != "kvgate"],
    }


def licences(packages):
    """Each foreign package with its licence's expression, then the texts that it ships, each text once."""
    lines, texts = ["Built from these packages:", ""], {}
    for package in packages:
        if package["source"] is None:
            continue
        lines.append(f"{package['name']} {package['version']}: {package['license'] or 'see its texts below'}")
        folder = pathlib.Path(package["manifest_path"]).parent
        for path in sorted(folder.iterdir()):
            if path.is_file() and path.name.lower().startswith(NAMES):
                text = path.read_text(encoding="utf-8", errors="replace").strip()
                texts.setdefault(text, []).append(f"{package['name']} {package['version']}")
    for text, owners in texts.items():
        lines += ["", "=" * 80, "Of " + ", ".join(owners), "=" * 80, text]
    return "\n".join(lines) + "\n"


def main():
    metadata, version, sbom, text, epoch = sys.argv[1:]
    packages = linked(json.loads(pathlib.Path(metadata).read_text()))
    unknown = [package["name"] for package in packages if package["source"] and not (package["license"] or package["license_file"])]
    if unknown:
        sys.exit(f"sbom: no licence is told by {', '.join(unknown)}")
    pathlib.Path(sbom).write_text(json.dumps(bom(packages, version, epoch), indent=1) + "\n")
    pathlib.Path(text).write_text(licences(packages))


if __name__ == "__main__":
    main()
