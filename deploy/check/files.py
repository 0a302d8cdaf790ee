"""What is not rendered: the chart itself, Dockerfile, scripts, alerts; and what is kept as rendered."""

import os
import pathlib
import tempfile

from . import cases, tools

PROMETHEUS = tools.ROOT / "deploy" / "prometheus"
MANIFESTS = tools.ROOT / "deploy" / "manifests"
REFRESH = "make deploy-manifests"


def shown(path):
    return pathlib.Path(path).relative_to(tools.ROOT)


def lint():
    """(line, findings) of each."""
    for helm in tools.HELMS:
        code, said = tools.run([helm, "lint", "--strict", tools.CHART])
        yield f"{helm.name} lint --strict {shown(tools.CHART)}", [said] if code else []
        for case in cases.ALL:
            values = [word for path in case.values for word in ("--values", path)] + [word for one in case.settings for word in ("--set", one)]
            code, said = tools.run([helm, "lint", "--strict", *values, tools.CHART])
            yield f"{helm.name} lint --strict, values of {case.name}", [said] if code else []
    code, said = tools.run([tools.TOOLS / "hadolint", tools.ROOT / "Dockerfile"])
    yield "hadolint Dockerfile", [said] if code or said else []
    for script in shell_scripts():
        code, said = tools.run([tools.TOOLS / "shellcheck", "--severity=style", script])
        yield f"shellcheck {shown(script)}", [said] if code else []
    yield from deploy_scripts()
    for what, name in (("check", "alerts.yaml"), ("test", "alerts.test.yaml")):
        code, said = tools.run([tools.PROMTOOL, what, "rules", PROMETHEUS / name])
        yield f"promtool {what} rules {shown(PROMETHEUS / name)}", [said] if code else []


# Stands for kubectl and helm: writes down what it is asked and reads what it is sent, for who writes to one that does not is ended by SIGPIPE;
# everything that is looked for is there, or (EMPTY=1) nothing is.
STAND_IN = """#!/bin/sh
echo "$(basename "$0") $*" >> "$SAID"
case "$*" in
*/dev/stdin* | *"apply -f -"*) cat > /dev/null ;;
*"get nodes"*) printf '8\\n8\\n0\\n' ;;
*get*) [ -z "$EMPTY" ] ;;
esac
"""


def deploy_scripts():
    """deploy.sh and cleanup.sh against stand-ins: what a dry run, a first run, and a second one do."""
    deploy, cleanup, bench = (cases.LLAMA / name for name in ("deploy.sh", "cleanup.sh", "bench.sh"))
    create = ("create namespace ns", "create secret generic kvgate-token", "create secret generic llm-d-hf-token", "helm upgrade --install llama31")
    yield "deploy.sh --dry-run asks the cluster nothing", asked([deploy, "--dry-run", "ns"], wanted=(), unwanted=("kubectl", "helm"))
    yield "deploy.sh on an empty cluster makes all", asked([deploy, "ns"], wanted=create, unwanted=(), empty=True)
    yield "deploy.sh again makes nothing twice", asked([deploy, "ns"], wanted=create[3:], unwanted=create[:3])
    yield "deploy.sh with RDMA asks for the device", asked([deploy, "ns", "rdma"], wanted=("transport.rdmaResource=rdma/ib",), unwanted=())
    gateway = ("gateway-values.yaml", "helm upgrade --install gaie-llama31", "apply -f -", "rollout status deployment/gaie-llama31-epp")
    yield "deploy.sh --gateway installs pool and picker", asked([deploy, "--gateway", "ns"], wanted=(*create[3:], *gateway), unwanted=("vllm-router",))
    yield "deploy.sh --gateway --dry-run asks nothing", asked([deploy, "--gateway", "--dry-run", "ns"], wanted=(), unwanted=("kubectl", "helm"))
    yield "deploy.sh refuses an unknown flag", asked([deploy, "--gatewya", "ns"], wanted=(), unwanted=("helm",), code=1)
    yield "deploy.sh refuses an unknown provider", asked([deploy, "ns", "carrier-pigeon"], wanted=(), unwanted=("helm",), code=1)
    yield "deploy.sh refuses an image without a tag", asked([deploy, "ns"], wanted=(), unwanted=("helm",), code=1, KVGATE_IMAGE="registry:5000/kvgate")
    yield "cleanup.sh keeps secrets", asked([cleanup, "ns"], wanted=("helm uninstall llama31", "helm uninstall gaie-llama31"), unwanted=("secret",))
    yield "cleanup.sh --dry-run asks the cluster nothing", asked([cleanup, "--dry-run", "--secrets", "ns"], wanted=(), unwanted=("kubectl", "helm"))
    yield "bench.sh --dry-run asks the cluster nothing", asked([bench, "--dry-run", "ns"], wanted=(), unwanted=("kubectl",))
    yield "bench.sh runs the report's command", asked([bench, "ns"], wanted=("--max-concurrency 32", "delete pod"), unwanted=())


def asked(command, wanted, unwanted, code=0, empty=False, **more):
    with tempfile.TemporaryDirectory() as folder:
        said = pathlib.Path(folder) / "said"
        said.touch()
        for name in ("kubectl", "helm"):
            path = pathlib.Path(folder) / name
            path.write_text(STAND_IN)
            path.chmod(0o755)
        environment = {"PATH": f"{folder}:{os.environ['PATH']}", "SAID": str(said), "EMPTY": "1" if empty else "", "HF_TOKEN": "x"}
        got, text = tools.run(command, env=environment | {"KVGATE_IMAGE": "registry:5000/kvgate:1"} | more)
        heard = said.read_text()
    found = [f"exit code {got}, not {code}: {text[-300:]}"] * (got != code)
    found += [f"never asked: {one}" for one in wanted if one not in heard]
    return found + [f"asked: {one}" for one in unwanted if one in heard]


def shell_scripts():
    for folder in ("deploy", "scripts", "bench"):
        for path in sorted((tools.ROOT / folder).rglob("*")):
            if path.is_file() and not path.is_symlink() and os.access(path, os.R_OK):
                with open(path, "rb") as file:
                    first = file.readline(80)
                if first.startswith(b"#!") and first.rstrip().endswith((b"bash", b"/sh")):
                    yield path


def kept():
    """(path, text) of everything that is kept as rendered, for those without Helm."""
    head = "# Rendered from deploy/helm/kvgate by `{}`; do not edit. Secrets: see deploy/manifests/README.md.\n"
    for case in (cases.DEFAULTS, cases.SEED, cases.GATEWAY):
        yield MANIFESTS / f"{case.name}.yaml", head.format(REFRESH) + case.text() + "\n"
    for name, template in (("router-deployment.yaml", "router"), ("router-service.yaml", "services")):
        text = cases.SEED.text(more=["--show-only", f"templates/{template}.yaml"])
        if template == "services":
            text = next("---" + part for part in text.split("---") if "component: router" in part)
        yield cases.LLAMA / name, head.format(REFRESH) + text.rstrip() + "\n"


def rendered():
    for path, text in kept():
        current = path.read_text() if path.exists() else ""
        yield f"{shown(path)} is as rendered", [] if current == text else [f"it is not: run {REFRESH} and commit what it wrote"]


def refresh():
    for path, text in kept():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        print(f"wrote {shown(path)}")
