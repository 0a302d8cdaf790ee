"""Reading of rendered objects, for the checks: workloads, containers, their arguments and variables."""


def of_kind(documents, *kinds):
    return [document for document in documents if document.get("kind") in kinds]


def workloads(documents):
    return of_kind(documents, "Deployment", "StatefulSet", "Job")


def pod(workload):
    return workload.get("spec", {}).get("template", {}).get("spec", {})


def labels(workload):
    return workload.get("spec", {}).get("template", {}).get("metadata", {}).get("labels", {})


def containers(workload):
    """Those that live as long as the pod first, then those of its start."""
    spec = pod(workload)
    return spec.get("containers", []) + spec.get("initContainers", [])


def named(workload, name):
    return next((container for container in containers(workload) if container.get("name") == name), None)


def arguments(container):
    return [str(word) for word in container.get("args", [])]


def flag(container, name):
    """The value of --name=value, or None."""
    return next((word.split("=", 1)[1] for word in arguments(container) if word.startswith(f"--{name}=")), None)


def variables(container):
    """{name: value}, a field's path for one that comes from the pod's own object."""
    found = {}
    for variable in container.get("env", []):
        source = variable.get("valueFrom", {})
        found[variable.get("name")] = source.get("fieldRef", {}).get("fieldPath") if source else variable.get("value")
    return found


def is_pod_local(container):
    """Whether it is a router in a decode pod, behind a gateway."""
    return arguments(container)[:1] == ["router"] and "--pod-local" in arguments(container)


def ports(workload):
    """{name or number: number} of the whole pod."""
    found = {}
    for container in containers(workload):
        for port in container.get("ports", []):
            found[port.get("containerPort")] = port.get("containerPort")
            if port.get("name"):
                found[port["name"]] = port.get("containerPort")
    return found


def selected(documents, selector):
    """The workloads whose pods a selector takes; an empty one takes none here: it would take everybody's."""
    wanted = (selector or {}).get("matchLabels", selector or {})
    if not wanted:
        return []
    return [one for one in workloads(documents) if wanted.items() <= labels(one).items()]


def secret_of(workload, container, path):
    """(name of the secret, whether the file is in it) of a file that a container reads, or None: no secret is mounted there."""
    for mount in container.get("volumeMounts", []):
        folder = mount.get("mountPath", "").rstrip("/") + "/"
        if not str(path).startswith(folder):
            continue
        for volume in pod(workload).get("volumes", []):
            if volume.get("name") == mount.get("name") and "secret" in volume:
                items = volume["secret"].get("items")
                inside = str(path)[len(folder) :]
                return volume["secret"].get("secretName"), items is None or any(item.get("path") == inside for item in items)
    return None
