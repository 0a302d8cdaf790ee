"""The seed's deployment behind a gateway: GAIE's values beside the pods that they are for. The chart that they are given to is not here to be rendered."""

import yaml

from . import cases, objects

FOLDER = cases.LLAMA / "gaie-llama31"


def check(documents, values=None, route=None):
    """Findings in words; `documents` is the rendered seed behind a gateway."""
    values = cases.parse((FOLDER / "values.yaml").read_text())[0] if values is None else values
    route = cases.parse((FOLDER / "httproute.yaml").read_text())[0] if route is None else route
    yield from pool(documents, values["inferencePool"])
    yield from picker(values["inferenceExtension"])
    yield from names(documents, route)


def pool(documents, pool):
    ports = [port["number"] for port in pool["targetPorts"]]
    wanted = pool["modelServers"]["matchLabels"]
    taken = {one["metadata"]["labels"]["app.kubernetes.io/component"]: one for one in objects.selected(documents, wanted)}
    if set(taken) != {"prefill", "decode"}:
        yield f"the pool's labels {wanted} take {sorted(taken) or 'no pod'}, not the prefill and the decode pod"
        return
    if len(ports) != 1:
        yield f"the pool has {len(ports)} target ports; all ranks of a pod stand behind one"
        return
    vllm = objects.flag(objects.named(taken["prefill"], "vllm"), "port")
    if str(ports[0]) != vllm:
        yield f"the pool's target port is {ports[0]}, but vLLM of the prefill pod listens on {vllm}"
    router = next((one for one in objects.containers(taken["decode"]) if objects.is_pod_local(one)), None)
    if router is None:
        yield "there is no router in the decode pod"
    elif str(ports[0]) != objects.flag(router, "port"):
        yield f"the pool's target port is {ports[0]}, but the decode pod's router listens on {objects.flag(router, 'port')}"
    roles = {side: objects.labels(one).get("llm-d.ai/role") for side, one in taken.items()}
    if roles != {"prefill": "prefill", "decode": "decode"}:
        yield f"llm-d's filters go by llm-d.ai/role, which is {roles}"


def picker(extension):
    name = extension["pluginsConfigFile"]
    files = extension["pluginsCustomConfig"]
    if name not in files:
        yield f"pluginsConfigFile is {name}, which is not among {sorted(files)}"
        return
    config = yaml.load(files[name], Loader=cases.StrictLoader)
    declared = {plugin.get("name", plugin["type"]) for plugin in config["plugins"]}
    types = {plugin["type"] for plugin in config["plugins"]}
    for needed in ("disagg-headers-handler", "disagg-profile-handler"):
        if needed not in types:
            yield f"without {needed} nobody names a prefill pod in a header"
    handler = next((plugin for plugin in config["plugins"] if plugin["type"] == "disagg-profile-handler"), {})
    used = set(handler.get("parameters", {}).get("deciders", {}).values())
    profiles = {profile["name"]: profile for profile in config["schedulingProfiles"]}
    if set(profiles) != {"prefill", "decode"}:
        yield f"the scheduling profiles are {sorted(profiles)}, not prefill and decode"
    for role, profile in profiles.items():
        refs = [plugin["pluginRef"] for plugin in profile["plugins"]]
        used |= set(refs)
        if f"{role}-filter" not in refs:
            yield f"the profile {role} does not look for {role} pods"
    for plugin in sorted(used - declared):
        yield f"the plugin {plugin} is used and not declared"


def names(documents, route):
    release = "gaie-llama31"
    backends = [backend["name"] for rule in route["spec"]["rules"] for backend in rule["backendRefs"]]
    if backends != [release]:
        yield f"the route goes to {backends}, not to the pool {release}"
    helmfile = (cases.LLAMA / "helmfile.yaml.gotmpl").read_text()
    script = (cases.LLAMA / "deploy.sh").read_text()
    for path in ("gateway-values.yaml", "gaie-llama31/values.yaml", release):
        for what, text in (("helmfile.yaml.gotmpl", helmfile), ("deploy.sh", script)):
            if path not in text:
                yield f"{what} does not name {path}"
    label = {"inferencepool": f"{release}-epp"}
    for policy in objects.of_kind(documents, "NetworkPolicy"):
        peers = [peer for rule in policy["spec"]["ingress"] for peer in rule.get("from", [])]
        if not any(peer.get("podSelector", {}).get("matchLabels") == label for peer in peers):
            yield f"{policy['metadata']['name']} does not let the picker {label} in"
