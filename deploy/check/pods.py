"""Ports, names, mounts and selectors that have to agree, within a pod and between documents."""

import json
import pathlib
import re
import urllib.parse

from . import objects
from .objects import containers, labels, of_kind, pod, ports, selected, workloads

# Where Kubernetes puts a pod's account.
ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"


def check(documents):
    for workload in workloads(documents):
        for judge in (selectors, unique, probes, encrypted, mounts, sidecars, hooks, rights, accounts):
            for words in judge(workload, documents):
                yield workload, words
    for service in of_kind(documents, "Service"):
        for words in targets(documents, service, service["spec"].get("selector"), [port.get("targetPort", port.get("port")) for port in service["spec"]["ports"]]):
            yield service, words
    for monitor in of_kind(documents, "PodMonitor"):
        for words in targets(documents, monitor, monitor["spec"]["selector"], [end["port"] for end in monitor["spec"]["podMetricsEndpoints"]]):
            yield monitor, words
        for words in watched(documents, monitor):
            yield monitor, words
    for policy in of_kind(documents, "NetworkPolicy"):
        wanted = [port["port"] for rule in policy["spec"].get("ingress", []) for port in rule.get("ports", [])]
        for words in targets(documents, policy, policy["spec"]["podSelector"], wanted):
            yield policy, words
    for budget in of_kind(documents, "PodDisruptionBudget"):
        for words in targets(documents, budget, budget["spec"]["selector"], []):
            yield budget, words
    for scaler in of_kind(documents, "HorizontalPodAutoscaler"):
        reference = scaler["spec"]["scaleTargetRef"]
        if not any((one["kind"], one["metadata"]["name"]) == (reference["kind"], reference["name"]) for one in workloads(documents)):
            yield scaler, f"scales {reference['kind']}/{reference['name']}, which is not there"


def targets(documents, one, selector, wanted):
    """A selector must take pods, and each port must be one of theirs."""
    taken = selected(documents, selector)
    if not taken:
        yield f"{one['kind']} selects no pod: {selector}"
    for workload in taken:
        for port in wanted:
            if port not in ports(workload):
                yield f"port {port} is none of {workload['metadata']['name']}'s: {', '.join(str(known) for known in ports(workload))}"


def selectors(workload, _):
    wanted = workload["spec"].get("selector", {}).get("matchLabels", {})
    if not wanted.items() <= labels(workload).items():
        yield f"its selector {wanted} does not take its own pods"


def unique(workload, _):
    for what, found in (
        ("container", [one.get("name") for one in containers(workload)]),
        ("port name", [port["name"] for one in containers(workload) for port in one.get("ports", []) if "name" in port]),
        ("port", [port.get("containerPort") for one in containers(workload) for port in one.get("ports", [])]),
    ):
        for name in sorted({name for name in found if found.count(name) > 1}, key=str):
            yield f"two of its containers have the {what} {name}"
        for name in found:
            if what == "port name" and len(name) > 15:
                yield f"the port name {name} is longer than 15 characters"


def probes(workload, _):
    for container in containers(workload):
        own = {port.get("name") for port in container.get("ports", [])} | {port.get("containerPort") for port in container.get("ports", [])}
        for kind in ("startupProbe", "livenessProbe", "readinessProbe"):
            asked = container.get(kind, {}).get("httpGet", {}).get("port")
            if asked is not None and asked not in own:
                yield f"{container['name']}: {kind} asks port {asked}, which the container does not have"


def given(container, name):
    """A flag of kvgate's, as one or as a variable."""
    return objects.flag(container, name) or objects.variables(container).get(f"KVGATE_{name.upper().replace('-', '_')}")


def is_ours(container):
    return objects.arguments(container)[:1] in (["sidecar"], ["router"])


def encrypted(workload, _):
    """Who serves HTTPS is asked by https, and with a certificate where it wants one; the files for it are mounted."""
    for container in filter(is_ours, containers(workload)):
        https, mutual = (given(container, name) is not None for name in ("tls-cert", "tls-client-ca"))
        named = objects.arguments(container)
        for kind in ("startupProbe", "livenessProbe", "readinessProbe"):
            page, words = (container.get(kind, {}).get(key, {}) for key in ("httpGet", "exec"))
            words = words.get("command", [])
            named = named + words
            by_https = page.get("scheme") == "HTTPS" or any(word.startswith("--url=https://") for word in words)
            if (page or words) and by_https != https:
                yield f"{container['name']}: its {kind} asks by {'https' if by_https else 'http'}, and it serves {'https' if https else 'http'}"
            if page and mutual:
                yield f"{container['name']}: its {kind} shows no certificate, and --tls-client-ca asks for one"
        mounted = [mount["mountPath"] for mount in container.get("volumeMounts", [])]
        files = {word.split("=", 1)[1] for word in named if re.match(r"--(tls|upstream)-(ca|cert|client-ca|key)=/", word)}
        for folder in sorted({str(pathlib.PurePosixPath(file).parent) for file in files}):
            if folder not in mounted:
                yield f"{container['name']}: {folder} is mounted nowhere"


def watched(documents, monitor):
    """Prometheus asks each port as its server wants to be asked."""
    for workload in selected(documents, monitor["spec"]["selector"]):
        for end in monitor["spec"]["podMetricsEndpoints"]:
            for container in filter(is_ours, containers(workload)):
                if end["port"] not in [port.get("name") for port in container.get("ports", [])]:
                    continue
                https, mutual = (given(container, name) is not None for name in ("tls-cert", "tls-client-ca"))
                if (end.get("scheme") == "https") != https:
                    yield f"port {end['port']} serves {'https' if https else 'http'}, and is asked by {end.get('scheme', 'http')}"
                if mutual and "cert" not in end.get("tlsConfig", {}):
                    yield f"port {end['port']} asks for a certificate, and Prometheus is given none"


def mounts(workload, documents):
    volumes = {volume["name"]: volume for volume in pod(workload).get("volumes", [])}
    used = set()
    maps = {one["metadata"]["name"]: one for one in of_kind(documents, "ConfigMap")}
    for container in containers(workload):
        paths = [mount["mountPath"] for mount in container.get("volumeMounts", [])]
        for path in {path for path in paths if paths.count(path) > 1}:
            yield f"{container['name']}: two volumes at {path}"
        for mount in container.get("volumeMounts", []):
            used.add(mount["name"])
            if mount["name"] not in volumes:
                yield f"{container['name']} mounts {mount['name']}, which is no volume of the pod"
    for name, volume in volumes.items():
        if name not in used:
            yield f"the volume {name} is mounted nowhere"
        wanted = volume.get("configMap", {}).get("name")
        if wanted is not None and wanted not in maps:
            yield f"the volume {name} is the config map {wanted}, which is not there"


def sidecars(workload, _):
    """kvgate beside an engine is a native sidecar that answers before the engine is up, and is stopped after it."""
    for container in containers(workload):
        if objects.arguments(container)[:1] != ["sidecar"] and not objects.is_pod_local(container):
            continue
        if container not in pod(workload).get("initContainers", []) or container.get("restartPolicy") != "Always":
            yield f"{container['name']} is no native sidecar: an init container with restartPolicy Always"
        for kind, path in (("startupProbe", "/livez"), ("livenessProbe", "/livez"), ("readinessProbe", "/readyz")):
            if asked(container.get(kind, {})) != path:
                yield f"{container['name']}: its {kind} must ask {path}"
    spec = pod(workload)
    if spec.get("terminationGracePeriodSeconds", 30) < needed_to_end(workload):
        yield f"terminationGracePeriodSeconds is {spec.get('terminationGracePeriodSeconds', 30)}; its containers may need {needed_to_end(workload)}"


def asked(probe):
    """The path that a probe asks for, itself or by kvgate health."""
    words = probe.get("exec", {}).get("command", [])
    url = next((word for word in words if word.startswith("--url=")), "") if "health" in words else ""
    return probe.get("httpGet", {}).get("path") or url.rpartition(":")[2].lstrip("0123456789")


def needed_to_end(workload):
    """Seconds: the longest wait before the signal, the drain of what serves, and the sidecar's own end after that."""
    first = last = 0
    for container in containers(workload):
        notice = before_the_signal(container)
        drain = int((objects.flag(container, "shutdown-timeout") or objects.flag(container, "drain-timeout") or "0").rstrip("s"))
        # Native sidecars are told one after the other, when all else has ended.
        if objects.arguments(container)[:1] == ["sidecar"]:
            last += 29
        elif container in pod(workload).get("initContainers", []):
            last += drain + 9 * objects.is_pod_local(container)
        else:
            first = max(first, notice + drain)
    return first + last


def before_the_signal(container):
    """Seconds that its preStop hook may take."""
    hook = container.get("lifecycle", {}).get("preStop", {})
    asked = urllib.parse.urlsplit(hook.get("httpGet", {}).get("path", ""))
    wait = urllib.parse.parse_qs(asked.query).get("wait", ["0s"])[0]
    return hook.get("sleep", {}).get("seconds", 0) + int(wait.removesuffix("s"))


def hooks(workload, _):
    """A prefill engine's end waits for the sidecar's word that nobody needs its blocks, at least a lease long."""
    for container in containers(workload):
        try:
            transfer = json.loads(objects.flag(container, "kv-transfer-config") or "{}")
        except ValueError:
            continue
        if transfer.get("kv_role") != "kv_producer":
            continue
        asked = container.get("lifecycle", {}).get("preStop", {}).get("httpGet", {})
        listens = [objects.variables(beside).get("KVGATE_LISTEN", "") for beside in containers(workload)]
        if not asked.get("path", "").startswith("/quietz?") or not any(at.endswith(f":{asked.get('port')}") for at in listens):
            yield f"{container['name']}: its preStop hook must ask the sidecar's /quietz"
        lease = transfer.get("kv_connector_extra_config", {}).get("kv_lease_duration", 30)
        if before_the_signal(container) < lease:
            yield f"{container['name']}: its preStop hook waits {before_the_signal(container)} s, its blocks may be needed for {lease}"


def rights(workload, _):
    """kvgate's own containers: no root, nothing to write, no capability."""
    for container in containers(workload):
        if objects.arguments(container)[:1] not in (["sidecar"], ["router"]):
            continue
        context = container.get("securityContext", {})
        wanted = {"runAsNonRoot": True, "readOnlyRootFilesystem": True, "allowPrivilegeEscalation": False}
        capabilities = {"drop": ["ALL"]}
        if context.get("runAsUser") == 0 and objects.arguments(container)[:1] == ["sidecar"]:
            # The one exception: it pins memory on a node that limits that.
            del wanted["runAsNonRoot"]
            capabilities["add"] = ["IPC_LOCK"]
        for key, value in wanted.items():
            if context.get(key) is not value:
                yield f"{container['name']}: securityContext.{key} must be {value}"
        if context.get("capabilities") != capabilities:
            yield f"{container['name']}: securityContext.capabilities must be {capabilities}"
        if ":" not in container.get("image", "").rsplit("/", 1)[-1]:
            yield f"{container['name']}: the image {container.get('image')} has no tag"


def accounts(workload, documents):
    """A pod that asks the API needs an account whose role allows it; one that does not must not carry a token."""
    spec = pod(workload)
    asking = [one for one in containers(workload) if "--service-discovery" in objects.arguments(one)]
    asks = bool(asking)
    carries = spec.get("automountServiceAccountToken", True)
    if carries and not asks:
        yield "it carries an API token that none of its containers uses"
    # A token may also be mounted by hand, into the container that asks and into no other.
    tokens = [
        volume["name"]
        for volume in spec.get("volumes", [])
        if any("serviceAccountToken" in source for source in volume.get("projected", {}).get("sources", []))
    ]
    for container in containers(workload):
        places = [mount["mountPath"] for mount in container.get("volumeMounts", []) if mount["name"] in tokens]
        if places and container not in asking:
            yield f"{container['name']} carries an API token that it does not use"
        if container in asking and not carries and places != [ACCOUNT]:
            yield f"{container['name']} watches pods, but automountServiceAccountToken is off and no token is at {ACCOUNT}"
    if not asks:
        return
    account = spec.get("serviceAccountName")
    if account not in [one["metadata"]["name"] for one in of_kind(documents, "ServiceAccount")]:
        yield f"its service account {account} is not there"
    bound = [
        one["roleRef"]["name"]
        for one in of_kind(documents, "RoleBinding")
        if any((subject["kind"], subject["name"]) == ("ServiceAccount", account) for subject in one["subjects"])
    ]
    rules = [rule for role in of_kind(documents, "Role") if role["metadata"]["name"] in bound for rule in role["rules"]]
    if not any("pods" in rule["resources"] and {"list", "watch"} <= set(rule["verbs"]) for rule in rules):
        yield f"no role lets {account} list and watch pods"
