"""kvgate's own word on every command line and KVGATE_ variable that the documents hold: it parses them as it will in the pod."""

import functools
import os
import pathlib
import re
import tempfile

from . import objects, tools

# What ends after the check instead of serving.
ENDS = {"sidecar": "--check-config", "router": "--print-config"}
# For a variable that comes from the pod's own object.
# A certificate of nobody with its key, for what the pod will have as certificates.
IDENTITY = pathlib.Path(__file__).parent / "identity.pem"
POD = {"status.podIP": "10.0.0.7", "metadata.namespace": "kvgate", "metadata.name": "pod-0"}


@functools.cache
def known_variables(command):
    code, text = tools.run([tools.KVGATE, command, "--help"])
    assert code == 0, text
    return set(re.findall(r"\[env: (KVGATE_[A-Z_]+)", text)) | {"KVGATE_CONFIG"}


def check(documents):
    for workload in objects.workloads(documents):
        for container in objects.containers(workload):
            command = (objects.arguments(container) or [""])[0]
            if command in ENDS:
                for words in judge(container, command):
                    yield workload, words


def judge(container, command):
    variables = {name: POD.get(value, value) for name, value in objects.variables(container).items()}
    for name in variables:
        if name.startswith("KVGATE_") and name not in known_variables(command):
            yield f"{container['name']}: kvgate {command} knows no variable {name}"
    with tempfile.TemporaryDirectory() as folder:
        here = functools.partial(localised, variables=variables, folder=pathlib.Path(folder))
        line = [tools.KVGATE, *(here(word) for word in objects.arguments(container)), ENDS[command]]
        environment = {"PATH": os.environ.get("PATH", ""), "KUBERNETES_SERVICE_HOST": "10.96.0.1", "KUBERNETES_SERVICE_PORT": "443"} | {name: here(value) for name, value in variables.items() if value is not None}
        code, said = tools.run(line, env=environment)
    if code or "WARN" in said:
        yield f"{container['name']}: kvgate {command} exits {code}: {said[-500:]}"


def localised(text, variables, folder):
    """$(NAME) as Kubernetes expands it, and a file that the pod will have as one of this machine."""
    text = re.sub(r"\$\((\w+)\)", lambda match: str(variables.get(match[1], match[0])), str(text))
    match = re.search(r"(^|=)(/(?:etc/kvgate(?:-clients-ca|-clients-tls|-tls)?|var/run/secrets)/\S+)$", text)
    if not match:
        return text
    path = folder / match[2].lstrip("/").replace("/", "-")
    path.write_text(IDENTITY.read_text() if path.suffix in (".crt", ".key") else "a-token\n")
    return text[: match.start(2)] + str(path)
