"""vLLM's settings, the sidecar's and the router's: what is not on the wire has to be told to each, and must be the same."""

import json
import pathlib
import re

from . import objects
from .objects import flag, variables, workloads

# What a sidecar may request beyond staging: its process with NIXL, and CUDA's part of it.
MOST_BESIDE_STAGING = 2 << 30
ROLES = {"prefill": "kv_producer", "decode": "kv_consumer"}


def check(documents):
    sides = {}
    for workload in workloads(documents):
        engine, sidecar = objects.named(workload, "vllm"), objects.named(workload, "kvgate")
        if engine is None and sidecar is None:
            continue
        if engine is None or sidecar is None:
            yield workload, "an engine's pod holds the containers vllm and kvgate"
            continue
        role = variables(sidecar).get("KVGATE_ROLE")
        sides[role] = (workload, engine, sidecar)
        for words in (*pair(engine, sidecar, role), *memory(workload, engine, sidecar)):
            yield workload, words
    if {"prefill", "decode"} <= sides.keys():
        for words in both(sides):
            yield sides["decode"][0], words
    for workload in workloads(documents):
        for container in objects.containers(workload):
            if objects.arguments(container)[:1] == ["router"]:
                for words in router(documents, workload, container, sides):
                    yield workload, words


def pair(engine, sidecar, role):
    ours, theirs = variables(sidecar), variables(engine)
    port = flag(engine, "port")
    if ours.get("KVGATE_ENGINE") != f"http://127.0.0.1:{port}":
        yield f"KVGATE_ENGINE is {ours.get('KVGATE_ENGINE')}, but vLLM listens on port {port}"
    if int(port or 0) not in [one.get("containerPort") for one in engine.get("ports", [])]:
        yield f"vLLM listens on port {port}, which its container does not declare"
    if theirs.get("VLLM_NIXL_SIDE_CHANNEL_HOST") != "status.podIP":
        yield "VLLM_NIXL_SIDE_CHANNEL_HOST is not status.podIP: vLLM would tell other pods the word localhost"
    base = theirs.get("VLLM_NIXL_SIDE_CHANNEL_PORT")
    if ours.get("POD_IP") != "status.podIP" or ours.get("KVGATE_ENGINE_SIDE_CHANNEL") != f"$(POD_IP):{base}":
        yield f"KVGATE_ENGINE_SIDE_CHANNEL is {ours.get('KVGATE_ENGINE_SIDE_CHANNEL')}, but vLLM's side channel is at the pod's address, port {base}"
    for ours_name, flag_name in (("KVGATE_DATA_PARALLEL_SIZE", "data-parallel-size"), ("KVGATE_TENSOR_PARALLEL_SIZE", "tensor-parallel-size")):
        if ours.get(ours_name) != flag(engine, flag_name):
            yield f"{ours_name} is {ours.get(ours_name)}, but vLLM has --{flag_name}={flag(engine, flag_name)}"
    for name in sorted({name for name in ours | theirs if name.startswith("UCX_")}):
        if ours.get(name) != theirs.get(name):
            yield f"{name} is {theirs.get(name)} for vLLM and {ours.get(name)} for the sidecar: each must reach the other"
    try:
        told = json.loads(flag(engine, "kv-transfer-config") or "")
    except json.JSONDecodeError as error:
        yield f"--kv-transfer-config is no JSON: {error}"
        return
    for key, wanted in (("kv_connector", "NixlConnector"), ("kv_role", ROLES.get(role)), ("kv_load_failure_policy", "fail")):
        if told.get(key) != wanted:
            yield f"--kv-transfer-config: {key} is {told.get(key)}, not {wanted}"
    lease = told.get("kv_connector_extra_config", {}).get("kv_lease_duration", 30)
    if ours.get("KVGATE_KV_LEASE", "30s") != f"{lease}s":
        yield f"KVGATE_KV_LEASE is {ours.get('KVGATE_KV_LEASE')}, but vLLM's kv_lease_duration is {lease}"
    yield from clear_of_one_another(engine, sidecar, int(flag(engine, "data-parallel-size") or 1))


def clear_of_one_another(engine, sidecar, ranks):
    """All containers of a pod share its ports."""
    ours, theirs = variables(sidecar), variables(engine)
    number = lambda text: int(str(text or "0").rsplit(":", 1)[-1])  # noqa: E731
    taken = {}
    ranges = [
        ("vLLM's API", number(flag(engine, "port")), 1),
        ("vLLM's side channels", number(theirs.get("VLLM_NIXL_SIDE_CHANNEL_PORT")), ranks),
        ("the sidecar's API", number(ours.get("KVGATE_LISTEN") or 7700), 1),
        ("the sidecar's side channels", number(ours.get("KVGATE_SIDE_CHANNEL_LISTEN") or 7800), ranks),
    ]
    for what, first, count in ranges:
        for port in range(first, first + count):
            if port in taken:
                yield f"port {port} is for {taken[port]} and for {what}"
                break
            taken[port] = what
    listen = number(ours.get("KVGATE_LISTEN") or 7700)
    if listen not in [one.get("containerPort") for one in sidecar.get("ports", [])]:
        yield f"the sidecar listens on port {listen}, which its container does not declare"


def memory(workload, engine, sidecar):
    ours = variables(sidecar)
    ranks = int(flag(engine, "data-parallel-size") or 1)
    shards = int(flag(engine, "tensor-parallel-size") or 1)
    gpus = engine.get("resources", {}).get("limits", {}).get("nvidia.com/gpu")
    if gpus != str(ranks * shards):
        yield f"{ranks} ranks of {shards} shards need {ranks * shards} GPUs; nvidia.com/gpu is {gpus}"
    requested = quantity(sidecar.get("resources", {}).get("requests", {}).get("memory"))
    # --staging-bytes is of a rank, over its TP shards.
    on_host = ours.get("KVGATE_ROLE") == "decode" and ours.get("KVGATE_STAGING") != "vram"
    staging = ranks * quantity(ours.get("KVGATE_STAGING_BYTES", "2GiB")) if on_host else 0
    if not staging < requested <= staging + MOST_BESIDE_STAGING:
        taken = f"{ranks} x {ours.get('KVGATE_STAGING_BYTES')}" if on_host else "no memory of the host's"
        yield f"staging takes {taken}; the sidecar requests {requested >> 30} GiB of memory"
    shared = [volume for volume in objects.pod(workload).get("volumes", []) if volume.get("emptyDir", {}).get("medium") == "Memory"]
    for container in (engine, sidecar):
        at = [mount["name"] for mount in container.get("volumeMounts", []) if mount["mountPath"] == "/dev/shm"]
        if at != [volume["name"] for volume in shared]:
            yield f"{container['name']} has no /dev/shm on the pod's shared memory: UCX's shared memory and vLLM's processes need it"
    added = engine.get("securityContext", {}).get("capabilities", {}).get("add", [])
    wanted = ["IPC_LOCK"] + ["SYS_PTRACE"] * bool(objects.pod(workload).get("shareProcessNamespace"))
    for capability in wanted:
        if capability not in added:
            yield f"vLLM's container lacks the capability {capability}"
    yield from library(workload, sidecar)


def library(workload, sidecar):
    """Without NIXL a sidecar does not start: its image has none, so a volume must, and something must fill it."""
    path = variables(sidecar).get("KVGATE_NIXL_LIBRARY")
    if path is None:
        return
    volume = next((mount["name"] for mount in sidecar.get("volumeMounts", []) if path.startswith(mount["mountPath"].rstrip("/") + "/")), None)
    before = objects.pod(workload).get("initContainers", [])
    before = before[: before.index(sidecar)] if sidecar in before else []
    if not any(mount["name"] == volume for container in before for mount in container.get("volumeMounts", [])):
        yield f"KVGATE_NIXL_LIBRARY is {path}, but no container that ends before the sidecar starts writes there"


def both(sides):
    (_, p_engine, p_sidecar), (_, d_engine, d_sidecar) = sides["prefill"], sides["decode"]
    if p_engine["image"] != d_engine["image"]:
        yield f"two releases of vLLM: {p_engine['image']} and {d_engine['image']}"
    if objects.arguments(p_engine)[:1] != objects.arguments(d_engine)[:1]:
        yield "two models"
    for name in ("block-size", "tensor-parallel-size", "dtype", "kv-cache-dtype", "max-model-len"):
        if flag(p_engine, name) != flag(d_engine, name):
            yield f"--{name} is {flag(p_engine, name)} on P and {flag(d_engine, name)} on D"
    if p_sidecar["image"] != d_sidecar["image"]:
        yield f"two releases of kvgate: {p_sidecar['image']} and {d_sidecar['image']}"


def router(documents, workload, container, sides):
    services = {one["metadata"]["name"]: [port["port"] for port in one["spec"]["ports"]] for one in objects.of_kind(documents, "Service")}
    local = objects.is_pod_local(container)
    if local:
        yield from in_pod(workload, container, sides)
    for side in sides:
        if local and side == "decode":
            continue
        for address in re.findall(r"https?://[^,]+", flag(container, side) or ""):
            host, port = re.fullmatch(r"https?://([^:/]+):(\d+)", address).groups()
            if int(port) not in services.get(host, []):
                yield f"--{side} names {address}: no Service {host} with port {port}"
        _, engine, sidecar = sides[side]
        if flag(container, "intra-node-data-parallel-size") != flag(engine, "data-parallel-size"):
            yield f"--intra-node-data-parallel-size is {flag(container, 'intra-node-data-parallel-size')}, but {side} has {flag(engine, 'data-parallel-size')} ranks"
        if side == "prefill" and flag(container, "kv-lease") != variables(sidecar).get("KVGATE_KV_LEASE"):
            yield f"--kv-lease is {flag(container, 'kv-lease')}, but P's lease is {variables(sidecar).get('KVGATE_KV_LEASE')}"
        ours = objects.secret_of(workload, container, flag(container, "token-file"))
        theirs = objects.secret_of(sides[side][0], sidecar, variables(sidecar).get("KVGATE_TOKEN_FILE"))
        if ours is None or theirs is None or ours[0] != theirs[0] or not (ours[1] and theirs[1]):
            yield f"router and {side} sidecar do not read their token out of one secret: {ours} and {theirs}"
        yield from found(container, side, sides[side])
        yield from secured(container, side, sides[side])
    for name in ("port", "admin-port"):
        if int(flag(container, name) or 0) not in [one.get("containerPort") for one in container.get("ports", [])]:
            yield f"--{name}={flag(container, name)} is no port of its container"


def in_pod(workload, container, sides):
    """A router in a decode pod: its engine and sidecar are the pod's own, and a gateway finds it where it finds the prefill pods."""
    if "decode" not in sides or sides["decode"][0] is not workload:
        yield f"{container['name']} is a router in a decode pod, but not in the decode pod"
        return
    _, engine, sidecar = sides["decode"]
    listen = variables(sidecar).get("KVGATE_LISTEN", "").rsplit(":", 1)[-1]
    scheme = "https" if "KVGATE_TLS_CERT" in variables(sidecar) else "http"
    own = f"http://127.0.0.1:{flag(engine, 'port')},sidecar={scheme}://127.0.0.1:{listen}"
    if flag(container, "decode") != own:
        yield f"--decode is {flag(container, 'decode')}, but this pod is {own}"
    if flag(container, "intra-node-data-parallel-size") != flag(engine, "data-parallel-size"):
        yield f"--intra-node-data-parallel-size is {flag(container, 'intra-node-data-parallel-size')}, but the pod has {flag(engine, 'data-parallel-size')} ranks"
    if "prefill" in sides and flag(container, "port") != flag(sides["prefill"][1], "port"):
        yield f"--port is {flag(container, 'port')}, but a pool has one target port and the prefill pods' is {flag(sides['prefill'][1], 'port')}"


def found(container, side, pod):
    """With discovery: the selectors take the pods, and the ports are theirs."""
    workload, engine, sidecar = pod
    if not any(word.startswith("--service-discovery") and "=" not in word for word in objects.arguments(container)):
        if not flag(container, side) and not flag(container, "prefill-allow"):
            yield f"the router is told of no {side} pod: neither --{side} nor --service-discovery"
        return
    selector = dict(pair.split("=", 1) for pair in (flag(container, f"{side}-selector") or "").split())
    if not selector or not selector.items() <= objects.labels(workload).items():
        yield f"--{side}-selector {selector} does not take {workload['metadata']['name']}'s pods"
    port = (flag(container, "decode-discovery-port") if side == "decode" else None) or flag(container, "service-discovery-port")
    if port != flag(engine, "port"):
        yield f"{side} pods are looked for at port {port}, but vLLM listens on {flag(engine, 'port')}"
    listen = variables(sidecar).get("KVGATE_LISTEN", "").rsplit(":", 1)[-1]
    if flag(container, "sidecar-discovery-port") != listen:
        yield f"sidecars are looked for at port {flag(container, 'sidecar-discovery-port')}, but listen on {listen}"


def secured(container, side, pod):
    """Router and sidecar speak TLS with one another, both or neither, and each trusts what the other shows."""
    workload, _, sidecar = pod
    ours, serves = variables(sidecar), "KVGATE_TLS_CERT" in variables(sidecar)
    named = "sidecar=https://" in (flag(container, side) or "") or flag(container, "sidecar-scheme") == "https"
    if named != serves:
        yield f"the router asks the {side} sidecar by {'https' if named else 'http'}, which serves {'https' if serves else 'http'}"
    if not serves:
        return
    folders = {str(pathlib.PurePosixPath(path).parent) for name, path in ours.items() if name.startswith(("KVGATE_TLS_", "KVGATE_UPSTREAM_")) and "/" in path}
    for folder in sorted(folders):
        if folder not in [mount["mountPath"] for mount in sidecar.get("volumeMounts", [])]:
            yield f"{folder} is mounted nowhere in the {side} sidecar"
    if ours.get("KVGATE_UPSTREAM_SERVER_NAME") != flag(container, "upstream-server-name"):
        yield f"the router expects {flag(container, 'upstream-server-name')} of the sidecars, sidecars {ours.get('KVGATE_UPSTREAM_SERVER_NAME')} of one another"
    if "KVGATE_TLS_CLIENT_CA" in ours and not flag(container, "upstream-cert"):
        yield "sidecars ask for a certificate, and the router has none"


def quantity(text):
    """Bytes of 4Gi, 4GiB, 512Mi …; 0 for none."""
    match = re.fullmatch(r"(\d+)([KMGT]i)B?", str(text or ""))
    return int(match[1]) << {"Ki": 10, "Mi": 20, "Gi": 30, "Ti": 40}[match[2]] if match else 0
