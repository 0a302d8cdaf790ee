"""The check itself, checked: each of these breaks one thing in a good deployment, and the words must be among the findings."""

import copy

from . import cases, gateway, objects


def run(findings_of):
    """(what was not found, how many were tried)."""
    seed = cases.SEED.documents() + cases.parse(MONITORS.text(more=["--show-only", "templates/podmonitor.yaml"]))
    found = cases.DEFAULTS.documents()
    behind, watching = (case.documents() for case in (cases.GATEWAY, WATCHING))
    missed = []
    everything = cases.Case("everything", "kvgate", values=(cases.tools.CHART / "ci" / "everything.yaml",)).documents()
    rows = [*((seed, row) for row in BROKEN), *((found, row) for row in BROKEN_DISCOVERY)]
    rows += [*((behind, row) for row in BROKEN_GATEWAY), *((watching, row) for row in BROKEN_WATCHING)]
    rows += [(everything, row) for row in BROKEN_TLS]
    shards = cases.Case("tensor-parallel", "kvgate", values=(cases.tools.CHART / "ci" / "tensor-parallel.yaml",)).documents()
    rows += [(shards, row) for row in BROKEN_SHARDS]
    for good, (what, wanted, breaks) in rows:
        documents = copy.deepcopy(good)
        breaks(documents)
        said = [word for words in findings_of(documents).values() for word in words]
        if not any(wanted in word for word in said):
            missed.append(f"{what}: expected {wanted!r}, found {said[:3]}")
    for what, wanted, breaks in BROKEN_POOL:
        values, route = (cases.parse((gateway.FOLDER / name).read_text())[0] for name in ("values.yaml", "httproute.yaml"))
        breaks(values, route)
        said = list(gateway.check(behind, values, route))
        if not any(wanted in word for word in said):
            missed.append(f"{what}: expected {wanted!r}, found {said[:3]}")
    for what, wanted, case in REFUSED:
        try:
            case.documents()
            missed.append(f"{what}: rendered")
        except cases.RenderError as error:
            if wanted not in str(error):
                missed.append(f"{what}: expected {wanted!r}, helm says {error}")
    return missed, len(rows) + len(BROKEN_POOL) + len(REFUSED)


MONITORS = cases.Case("monitors", "llama31", values=(cases.LLAMA / "values.yaml",), settings=("podMonitor.enabled=true",))


# Routers in decode pods that watch the prefill pods.
WATCHING = cases.Case("watching", "kvgate", values=(cases.tools.CHART / "ci" / "gateway.yaml",))


def one(documents, kind, ending):
    return next(document for document in documents if document["kind"] == kind and document["metadata"]["name"].endswith(ending))


def container(documents, ending, name):
    return objects.named(one(documents, "Deployment", ending), name)


def argument(ending, name, old, new):
    def breaks(documents):
        held = container(documents, ending, name)
        assert any(old in word for word in held["args"]), old
        held["args"] = [word.replace(old, new) for word in held["args"]]

    return breaks


def variable(ending, name, key, value):
    def breaks(documents):
        held = container(documents, ending, name)
        entry = next(entry for entry in held["env"] if entry["name"] == key)
        if value is None:
            held["env"].remove(entry)
        else:
            entry.pop("valueFrom", None)
            entry["value"] = value

    return breaks


def member(kind, ending, path, value):
    def breaks(documents):
        held = one(documents, kind, ending)
        for part in path[:-1]:
            held = held[part]
        if value is None:
            del held[path[-1]]
        else:
            held[path[-1]] = value

    return breaks


POD = ("spec", "template", "spec")
REQUESTED = (*POD, "initContainers", 1, "resources", "requests", "memory")
ROUTER = (*POD, "containers", 0)
BROKEN = [
    # Fields and values that Kubernetes does not know.
    ("an unknown field of a pod", "restartPolice", member("Deployment", "-decode", (*POD, "restartPolice"), "Always")),
    ("an unknown field of a container", "imagePullPolice", member("Deployment", "-llama31", (*ROUTER, "imagePullPolice"), "Always")),
    ("a word for a number", "is not of type", member("Deployment", "-decode", ("spec", "replicas"), "one")),
    ("a container without a name", "'name' is a required property", member("Deployment", "-llama31", (*ROUTER, "name"), None)),
    ("a kind that is not there", "knows no", member("Deployment", "-decode", ("apiVersion",), "apps/v1beta1")),
    ("a port out of range", "is no port", member("Service", "-llama31", ("spec", "ports", 0, "port"), 70000)),
    ("a name with capitals", "is no name", member("ConfigMap", "-scripts", ("metadata", "name"), "Scripts")),
    ("an unknown field of a PodMonitor", "portName", member("PodMonitor", "-decode", ("spec", "podMetricsEndpoints", 0, "portName"), "kvgate")),
    # Ports.
    ("a Service's port that its pods lack", "is none of", member("Service", "-llama31", ("spec", "ports", 0, "targetPort"), "htpp")),
    ("a PodMonitor's port that its pods lack", "is none of", member("PodMonitor", "-decode", ("spec", "podMetricsEndpoints", 0, "port"), "sidecar")),
    ("a NetworkPolicy's port that its pods lack", "is none of", member("NetworkPolicy", "-decode", ("spec", "ingress", 0, "ports", 0, "port"), 8201)),
    ("a probe of another port", "which the container does not have", member("Deployment", "-llama31", (*ROUTER, "livenessProbe", "httpGet", "port"), "web")),
    ("the engine on another port", "vLLM listens on port 8201", argument("-decode", "vllm", "--port=8200", "--port=8201")),
    ("the router asks another port", "no Service", argument("-llama31", "router", "decode:8200", "decode:8300")),
    ("the router asks another host", "no Service", argument("-llama31", "router", "-decode:8200", "-dcode:8200")),
    ("the router listens on another port", "is no port of its container", argument("-llama31", "router", "--port=10001", "--port=10002")),
    ("the sidecar listens on another port", "does not declare", variable("-decode", "kvgate", "KVGATE_LISTEN", "0.0.0.0:7701")),
    ("the sidecar's ports in vLLM's range", "is for vLLM's side channels and", variable("-decode", "kvgate", "KVGATE_SIDE_CHANNEL_LISTEN", "127.0.0.1:5601")),
    # Variables.
    ("no address for the side channel", "is not status.podIP", variable("-prefill", "vllm", "VLLM_NIXL_SIDE_CHANNEL_HOST", None)),
    ("loopback for the side channel", "is not status.podIP", variable("-prefill", "vllm", "VLLM_NIXL_SIDE_CHANNEL_HOST", "127.0.0.1")),
    ("another side-channel port", "vLLM's side channel is at", variable("-prefill", "vllm", "VLLM_NIXL_SIDE_CHANNEL_PORT", "5700")),
    ("an open API without a token", "--token-file", variable("-decode", "kvgate", "KVGATE_TOKEN_FILE", None)),
    ("a variable that kvgate does not know", "knows no variable KVGATE_STAGING_BITES", lambda documents: container(documents, "-decode", "kvgate")["env"].append({"name": "KVGATE_STAGING_BITES", "value": "1GiB"})),
    ("a size that is none", "a size is a number of bytes", variable("-decode", "kvgate", "KVGATE_STAGING_BYTES", "much")),
    ("UCX settings that differ", "UCX_TLS is", lambda documents: container(documents, "-decode", "vllm")["env"].append({"name": "UCX_TLS", "value": "tcp"})),
    ("another lease", "kv_lease_duration is 30", variable("-prefill", "kvgate", "KVGATE_KV_LEASE", "20s")),
    # Command lines.
    ("a flag that kvgate does not know", "--gaet", argument("-llama31", "router", "--gate=", "--gaet=")),
    ("a value that kvgate does not take", "exits 64", argument("-llama31", "router", "--gate=stage", "--gate=both")),
    ("another number of ranks", "but vLLM has --data-parallel-size=4", argument("-decode", "vllm", "--data-parallel-size=8", "--data-parallel-size=4")),
    ("fewer GPUs than ranks", "nvidia.com/gpu is 4", member("Deployment", "-decode", (*POD, "containers", 0, "resources", "limits", "nvidia.com/gpu"), "4")),
    ("P's role on D", "kv_role is kv_producer", argument("-decode", "vllm", "kv_consumer", "kv_producer")),
    ("recompute on failure", "kv_load_failure_policy is recompute", argument("-decode", "vllm", '"fail"', '"recompute"')),
    ("two block sizes", "--block-size is", lambda documents: container(documents, "-decode", "vllm")["args"].append("--block-size=64")),
    ("two vLLM releases", "two releases of vLLM", member("Deployment", "-decode", (*POD, "containers", 0, "image"), "vllm/vllm-openai:v0.31.0")),
    # Pods.
    ("a sidecar that starts as a container", "is no native sidecar", lambda documents: native_no_more(one(documents, "Deployment", "-decode"))),
    ("no startup probe", "its startupProbe must ask /livez", lambda documents: container(documents, "-decode", "kvgate").pop("startupProbe")),
    ("too short a grace", "terminationGracePeriodSeconds is 30", member("Deployment", "-decode", (*POD, "terminationGracePeriodSeconds"), 30)),
    ("nobody waits for P's blocks", "must ask the sidecar's /quietz", lambda documents: container(documents, "-prefill", "vllm").pop("lifecycle")),
    ("P's blocks are not waited for long enough", "its blocks may be needed for 30", lambda documents: container(documents, "-prefill", "vllm")["lifecycle"]["preStop"]["httpGet"].update(path="/quietz?wait=20s")),
    ("a volume that is not there", "which is no volume", lambda documents: container(documents, "-decode", "vllm")["volumeMounts"].append({"name": "nowhere", "mountPath": "/x"})),
    ("no shared memory for the sidecar", "has no /dev/shm", lambda documents: unmount(container(documents, "-decode", "kvgate"), "/dev/shm")),
    ("too little memory for staging", "staging takes 8 x 4GiB", member("Deployment", "-decode", REQUESTED, "8Gi")),
    ("nobody copies NIXL", "no container that ends before the sidecar", lambda documents: objects.pod(one(documents, "Deployment", "-decode"))["initContainers"].pop(0)),
    ("a sidecar as root", "runAsNonRoot must be True", lambda documents: container(documents, "-decode", "kvgate")["securityContext"].pop("runAsNonRoot")),
    ("another secret for the router", "out of one secret", lambda documents: objects.pod(one(documents, "Deployment", "-llama31"))["volumes"][0]["secret"].update(secretName="other")),
    ("no IPC_LOCK", "lacks the capability IPC_LOCK", lambda documents: container(documents, "-prefill", "vllm")["securityContext"]["capabilities"]["add"].remove("IPC_LOCK")),
    ("an API token that nobody uses", "carries an API token", lambda documents: objects.pod(one(documents, "Deployment", "-decode")).pop("automountServiceAccountToken")),
    ("a selector that takes no pod", "selects no pod", member("PodDisruptionBudget", "-decode", ("spec", "selector", "matchLabels", "app.kubernetes.io/component"), "decoder")),
]


# In the deployment with everything, TLS as well.
BROKEN_TLS = [
    ("a router that asks by http", "the router asks the prefill sidecar by http", argument("-router", "router", "--sidecar-scheme=https", "--sidecar-scheme=http")),
    ("a router without a certificate", "exits 64", argument("-router", "router", "--upstream-cert=", "--upstream-certificate=")),
    ("another name", "the router expects other.example", argument("-router", "router", "server-name=pods.kvgate.example", "server-name=other.example")),
    ("certificates that are mounted nowhere", "is mounted nowhere in the decode sidecar", lambda documents: unmount(container(documents, "-decode", "kvgate"), "/etc/kvgate-tls")),
    ("a probe that asks for something else", "its livenessProbe must ask /livez", member("Deployment", "-decode", (*POD, "initContainers", 1, "livenessProbe", "exec", "command"), ["kvgate", "health"])),
    ("a probe that shows no certificate", "its livenessProbe shows no certificate", member("Deployment", "-router", (*ROUTER, "livenessProbe"), {"httpGet": {"path": "/livez", "port": "http", "scheme": "HTTPS"}})),
    ("a probe's certificate that is mounted nowhere", "/etc/kvgate-probe-tls is mounted nowhere", lambda documents: unmount(container(documents, "-router", "router"), "/etc/kvgate-probe-tls")),
    ("Prometheus without a certificate", "Prometheus is given none", member("PodMonitor", "-router", ("spec", "podMetricsEndpoints", 0, "tlsConfig"), {"insecureSkipVerify": True})),
    ("a peer that is none", "is not CIDR", variable("-decode", "kvgate", "KVGATE_PEER_ALLOW", "10.2.0.0/16:x")),
]

# In the deployment whose ranks have several shards, and whose router serves HTTPS.
BROKEN_SHARDS = [
    ("memory for each shard what a rank takes", "staging takes 2 x 6GiB", member("Deployment", "-decode", REQUESTED, "49Gi")),
    ("a probe by http", "its livenessProbe asks by http", member("Deployment", "-router", (*ROUTER, "livenessProbe", "httpGet", "scheme"), None)),
    ("Prometheus by http", "port metrics serves https", member("PodMonitor", "-router", ("spec", "podMetricsEndpoints", 0, "scheme"), None)),
    ("no memory beside staging", "staging takes 2 x 6GiB", member("Deployment", "-decode", REQUESTED, "12Gi")),
]

# In the deployment whose router watches pods.
BROKEN_DISCOVERY = [
    ("a selector of the router that takes no pod", "does not take", argument("-router", "router", "component=decode", "component=decoder")),
    ("another port for discovered pods", "are looked for at port 8300", argument("-router", "router", "discovery-port=8200", "discovery-port=8300")),
    ("another port for discovered sidecars", "sidecars are looked for at port 7701", argument("-router", "router", "7700", "7701")),
    ("nobody may watch pods", "no role lets", member("Role", "-router", ("rules", 0, "resources"), ["secrets"])),
    ("no account", "service account", member("ServiceAccount", "-router", ("metadata", "name"), "other")),
    ("an account without a token", "automountServiceAccountToken is off", member("Deployment", "-router", (*POD, "automountServiceAccountToken"), False)),
    ("a router that knows no pods", "is told of no decode pod", lambda documents: container(documents, "-router", "router")["args"].remove("--service-discovery")),
]


# Behind a gateway, with a router in the decode pod.
BROKEN_GATEWAY = [
    ("a router that asks another engine", "but this pod is", argument("-decode", "router", "127.0.0.1:8200", "127.0.0.1:8000")),
    ("a router that asks another sidecar", "but this pod is", argument("-decode", "router", "sidecar=http://127.0.0.1:7700", "sidecar=http://127.0.0.1:7701")),
    ("a router where the gateway does not send", "one target port", argument("-decode", "router", "--port=8000", "--port=8001")),
    ("a router for another number of ranks", "but the pod has 8 ranks", argument("-decode", "router", "data-parallel-size=8", "data-parallel-size=4")),
    ("a router that may ask nobody", "--prefill-allow must be given", lambda documents: drop(container(documents, "-decode", "router"), "--prefill=", "--dns-discovery=")),
    ("a name that is no prefill pod's", "no Service", argument("-decode", "router", "-prefill:8000", "-prefil:8000")),
    ("a network that is none", "is not a network", lambda documents: container(documents, "-decode", "router")["args"].append("--prefill-allow=10.2/16")),
    ("a router that starts as a container", "router is no native sidecar", lambda documents: objects.named(one(documents, "Deployment", "-decode"), "router").pop("restartPolicy")),
    ("a router as root", "router: securityContext.runAsNonRoot", lambda documents: container(documents, "-decode", "router")["securityContext"].pop("runAsNonRoot")),
    ("too short a grace for three ends", "its containers may need", member("Deployment", "-decode", (*POD, "terminationGracePeriodSeconds"), 100)),
    ("a policy that keeps the gateway out", "is none of", member("NetworkPolicy", "-decode", ("spec", "ingress", 0, "ports", 0, "port"), 8001)),
]
BROKEN_WATCHING = [
    ("no token for the router that watches", "no token is at", lambda documents: unmount(container(documents, "-decode", "router"), "/var/run/secrets/kubernetes.io/serviceaccount")),
    ("a token for the engine too", "vllm carries an API token", lambda documents: container(documents, "-decode", "vllm")["volumeMounts"].append({"name": "api-access", "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount"})),
    ("nobody may watch prefill pods", "no role lets", member("Role", "-router", ("rules", 0, "resources"), ["secrets"])),
    ("a selector that takes no prefill pod", "does not take", argument("-decode", "router", "component=prefill", "component=prefiller")),
    ("a PodMonitor of a port that is not there", "is none of", member("PodMonitor", "-decode", ("spec", "podMetricsEndpoints", 2, "port"), "router")),
]
# GAIE's values and route: (what, words, what breaks them).
BROKEN_POOL = [
    ("another target port", "but vLLM of the prefill pod listens on 8000", lambda values, _: values["inferencePool"]["targetPorts"][0].update(number=8200)),
    ("a port per rank", "behind one", lambda values, _: values["inferencePool"]["targetPorts"].append({"number": 8001})),
    ("labels that take no pod", "take no pod", lambda values, _: values["inferencePool"]["modelServers"]["matchLabels"].update({"llm-d.ai/model": "x"})),
    ("nobody writes the header", "nobody names a prefill pod", lambda values, _: plugins(values, "- type: disagg-headers-handler", "- type: other")),
    ("a plugin that is not declared", "used and not declared", lambda values, _: plugins(values, "- type: queue-scorer", "- type: queue-scorers")),
    ("prefill on any pod", "does not look for prefill pods", lambda values, _: plugins(values, "- pluginRef: prefill-filter", "- pluginRef: decode-filter")),
    ("a file of plugins that is not there", "which is not among", lambda values, _: values["inferenceExtension"].update(pluginsConfigFile="x.yaml")),
    ("a route to another pool", "not to the pool", lambda _, route: route["spec"]["rules"][0]["backendRefs"][0].update(name="x")),
]


def plugins(values, old, new):
    held = values["inferenceExtension"]["pluginsCustomConfig"]
    assert old in held["pd.yaml"], old
    held["pd.yaml"] = held["pd.yaml"].replace(old, new)


def drop(held, *beginnings):
    held["args"] = [word for word in held["args"] if not word.startswith(beginnings)]


def native_no_more(workload):
    objects.named(workload, "kvgate").pop("restartPolicy")


def unmount(held, path):
    held["volumeMounts"] = [mount for mount in held["volumeMounts"] if mount["mountPath"] != path]


REFUSED = [
    ("a value that the chart does not know", "not allowed", cases.Case("x", "x", settings=("router.prot=8000",))),
    ("a port of the system's", "minimum", cases.Case("x", "x", settings=("router.port=80",))),
    ("more pods than static discovery can name", "router.discovery is static", cases.Case("x", "x", settings=("router.discovery=static", "decode.replicas=2"))),
    ("a gateway's port that is not the pool's", "gateway.port", cases.Case("x", "x", settings=("gateway.enabled=true", "gateway.port=8001"))),
    ("a gateway's port that is the engine's", "gateway.port", cases.Case("x", "x", settings=("gateway.enabled=true", "decode.port=8000"))),
    ("a gateway whose header nobody bounds", "gateway.prefillAllow", cases.Case("x", "x", settings=("gateway.enabled=true", "router.discovery=static"))),
    ("a gateway without a picker", "picker", cases.Case("x", "x", settings=("gateway.enabled=true", "gateway.picker=null"))),
    ("certificates asked for without TLS", "tls.clients.clientCa", cases.Case("x", "x", settings=("tls.clients.clientCa.secretName=ca",))),
    ("mutual TLS that shuts the kubelet out", "tls.clients.probe", cases.Case("x", "x", settings=("tls.clients.secretName=a", "tls.clients.clientCa.secretName=b"))),
    ("HTTPS behind a gateway", "tls.clients", cases.Case("x", "x", settings=("gateway.enabled=true", "tls.clients.secretName=a"))),
    ("a gate that is none", "router/gate", cases.Case("x", "x", settings=("router.gate=both",))),
]
