"""Every document against the JSON schema of its kind, in the oldest and the newest Kubernetes that the chart is for."""

import functools
import json
import re

import jsonschema
import referencing

from . import tools

VERSIONS = tuple(sorted(path.name for path in tools.SCHEMAS.iterdir())) if tools.SCHEMAS.exists() else ()
# Kinds that are no part of Kubernetes; only what this chart writes of them.
OWN = tools.ROOT / "deploy" / "check" / "schemas"


def versions(document):
    return "schema " + ", ".join(VERSIONS if not own(document) else ["of deploy/check/schemas"])


def own(document):
    path = OWN / f"{document.get('kind', '').lower()}.json"
    return path if path.exists() else None


@functools.cache
def registry(version):
    text = (tools.SCHEMAS / version / "_definitions.json").read_text()
    return referencing.Resource.from_contents(json.loads(text)) @ referencing.Registry()


@functools.cache
def validator(version, api_version, kind):
    group = re.sub(r"^([^./]*)(?:\.[^/]*)?/", r"\1-", api_version)
    path = tools.SCHEMAS / version / f"{kind.lower()}-{group}.json"
    if not path.exists():
        return None
    schema = json.loads(path.read_text())
    with_definitions = referencing.Resource.from_contents(schema) @ registry(version)
    return jsonschema.Draft202012Validator(schema, registry=with_definitions)


def check(documents):
    for document in documents:
        kind, api_version = document.get("kind", ""), document.get("apiVersion", "")
        path = own(document)
        if path:
            yield from ((document, words(error)) for error in jsonschema.Draft202012Validator(json.loads(path.read_text())).iter_errors(document))
            continue
        for version in VERSIONS:
            judge = validator(version, api_version, kind)
            if judge is None:
                yield document, f"Kubernetes {version} knows no {api_version} {kind}"
                continue
            for error in judge.iter_errors(document):
                yield document, f"Kubernetes {version}: {words(error)}"
        yield from ((document, text) for text in names(document))


def words(error):
    place = ".".join(str(part) for part in error.absolute_path)
    return f"{place or 'the document'}: {error.message[:300]}"


def names(document):
    """What an API server refuses beyond the schema: names, and ports out of range."""
    name = document.get("metadata", {}).get("name", "")
    if not re.fullmatch(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?", name):
        yield f"metadata.name: {name!r} is no name of a Kubernetes object"
    for path, value in walk(document):
        if path[-1] in ("containerPort", "port", "targetPort") and isinstance(value, int) and not 1 <= value <= 65535:
            yield f"{'.'.join(map(str, path))}: {value} is no port"
        if "labels" in path[-2:-1] or "matchLabels" in path[-2:-1]:
            if not re.fullmatch(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?", str(value)):
                yield f"{'.'.join(map(str, path))}: {value!r} is no label value"


def walk(value, path=()):
    if isinstance(value, dict):
        for key, member in value.items():
            yield from walk(member, (*path, key))
    elif isinstance(value, list):
        for at, member in enumerate(value):
            yield from walk(member, (*path, at))
    elif path:
        yield path, value
