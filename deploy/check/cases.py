"""The deployments that are rendered: each values file, with helm 4 and with helm 3, which must agree."""

import dataclasses
import pathlib

import yaml

from . import tools


class RenderError(Exception):
    """Helm refuses."""


class StrictLoader(yaml.SafeLoader):
    """Refuses a key that stands twice in one mapping; YAML's own rule, which PyYAML does not keep."""


def _mapping(loader, node, deep=False):
    keys = [loader.construct_object(key, deep=deep) for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
    twice = {key for key in keys if keys.count(key) > 1}
    if twice:
        raise yaml.constructor.ConstructorError(None, None, f"the key {sorted(twice)[0]!r} stands twice", node.start_mark)
    loader.flatten_mapping(node)
    return yaml.SafeLoader.construct_mapping(loader, node, deep)


StrictLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def parse(text):
    """The documents of a stream, empty ones left out."""
    try:
        return [document for document in yaml.load_all(text, Loader=StrictLoader) if document is not None]
    except yaml.YAMLError as error:
        raise RenderError(f"no YAML: {error}") from error


@dataclasses.dataclass(frozen=True)
class Case:
    """One deployment."""

    name: str
    release: str
    values: tuple = ()
    settings: tuple = ()

    def text(self, helm=tools.HELMS[0], more=()):
        command = [helm, "template", self.release, tools.CHART, "--namespace", "kvgate"]
        for path in self.values:
            command += ["--values", path]
        for setting in self.settings:
            command += ["--set", setting]
        code, said = tools.run([*command, *more])
        if code:
            raise RenderError(f"{pathlib.Path(helm).name} template: {said}")
        return said

    def documents(self):
        texts = [self.text(helm) for helm in tools.HELMS]
        first, second = (parse(text) for text in texts)
        if order(first) != order(second):
            raise RenderError("helm 3 and helm 4 render different documents")
        return first


def order(documents):
    return sorted(documents, key=lambda document: (document.get("kind", ""), document.get("metadata", {}).get("name", "")))


LLAMA = tools.ROOT / "deploy" / "llama31-dp8tp1"
TOKEN = "auth.existingSecret=kvgate-token"
# The token that the chart makes is another each time, so cases name one; `defaults` is the one that does not.
DEFAULTS = Case("defaults", "kvgate", settings=(TOKEN,))
SEED = Case("llama31-dp8tp1", "llama31", values=(LLAMA / "values.yaml",))
# The same behind a Gateway API gateway.
GATEWAY = Case("llama31-dp8tp1-gateway", "llama31", values=(LLAMA / "values.yaml", LLAMA / "gateway-values.yaml"))
ALL = [
    DEFAULTS,
    SEED,
    GATEWAY,
    *(Case(path.stem, "kvgate", values=(path,)) for path in sorted((tools.CHART / "ci").glob("*.yaml"))),
]
