"""What `make deploy-check` runs: everything of deploy/ that can be checked without a cluster, one line per document.

| module | looks at |
|---|---|
| `tools` | where helm, schemas, kvgate and the rest are |
| `cases` | which values files are rendered to what |
| `schemas` | every document against Kubernetes' schemas, unknown fields refused |
| `pods` | ports, names, variables and secrets that have to agree within a pod and between documents |
| `engine` | vLLM's and the sidecar's settings that have to agree |
| `command_lines` | kvgate's own word on each command line and variable |
| `gateway` | GAIE's values beside the pods that they are for |
| `files` | Dockerfile, scripts, alerts, the plain manifests as rendered |
| `broken` | the check itself: documents broken on purpose must be found |

Exit code 1 with a finding; each is printed below its document's line.
"""

import sys

from . import broken, cases, command_lines, engine, files, gateway, pods, schemas, tools


def findings_of(documents):
    """All that is wrong, as {document: [words]}; `documents` is one rendered deployment."""
    found = {id(document): [] for document in documents}
    for check in (schemas.check, pods.check, engine.check, command_lines.check):
        for document, words in check(documents):
            found[id(document)].append(words)
    return found


def name(document):
    return f"{document.get('kind')}/{document.get('metadata', {}).get('name')}"


def main():
    tools.require()
    failed = 0
    for line, words in files.lint():
        failed += bool(words)
        show(line, words)
    for case in cases.ALL:
        try:
            documents = case.documents()
        except cases.RenderError as error:
            failed += 1
            show(f"{case.name}: render", [str(error)])
            continue
        found = findings_of(documents)
        for document in documents:
            words = found[id(document)]
            failed += bool(words)
            show(f"{case.name}: {name(document)}", words, schemas.versions(document))
    words = list(gateway.check(cases.GATEWAY.documents()))
    failed += bool(words)
    show("llama31-dp8tp1-gateway: gaie-llama31", words)
    for line, words in files.rendered():
        failed += bool(words)
        show(line, words)
    missed, tried = broken.run(findings_of)
    failed += len(missed)
    show(f"documents broken on purpose: {tried - len(missed)} of {tried} found", missed)
    print(f"deploy-check: {failed} findings" if failed else "deploy-check: all well")
    return 1 if failed else 0


def show(line, words, note=""):
    print(f"{'FAIL' if words else 'ok  '}  {line}{'  ' + note if note and not words else ''}", flush=True)
    for word in words:
        print(f"        {word}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
