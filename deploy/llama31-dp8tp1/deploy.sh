#!/usr/bin/env bash
# Installs Llama 3.1 8B with prefill and decode split, DP8 TP1: deploy.sh [--dry-run] [--gateway] [namespace] [provider]
#
#   namespace   default llm-d-llama31
#   provider    how KV gets from pod to pod: tcp (default), or rdma (the device plug-in's resource in RDMA_RESOURCE, default rdma/ib)
#
#   --gateway   instead of the router in front, a Gateway API gateway and GAIE's endpoint picker; a router stands in the decode pod. The Gateway ($GATEWAY,
#               default inference-gateway, in the same namespace) and GAIE's CRDs must be there
#
#   KVGATE_IMAGE   repository:tag of kvgate's image in your registry (needed: none is published)
#   HF_TOKEN       a Hugging Face token that may read meta-llama/Llama-3.1-8B-Instruct; not needed when the secret llm-d-hf-token is there
#   RELEASE        the Helm release's name, default llama31
#   TIMEOUT        how long to wait for the pods, default 60m (weights are downloaded, engines compiled)
#
# It may be run again: it changes only what differs. --dry-run asks the cluster nothing and changes nothing: it prints what would be done.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
chart=$here/../helm/kvgate
dry='' gateway=''
while [[ ${1:-} == --* ]]; do
    case $1 in
        --dry-run) dry=1 ;;
        --gateway) gateway=1 ;;
        *)
            echo "deploy.sh: usage: deploy.sh [--dry-run] [--gateway] [namespace] [provider]" >&2
            exit 1
            ;;
    esac
    shift
done
namespace=${1:-llm-d-llama31}
provider=${2:-tcp}
release=${RELEASE:-llama31}
image=${KVGATE_IMAGE:-}
say() { echo "deploy.sh: $*"; }
fail() {
    echo "deploy.sh: $*" >&2
    exit 1
}
# Prints a command, and runs it unless this is a dry run.
run() {
    printf 'deploy.sh: +'
    printf ' %q' "$@"
    printf '\n'
    [ -n "$dry" ] || "$@"
}

[ $# -le 2 ] || fail "usage: deploy.sh [--dry-run] [--gateway] [namespace] [provider]"
[[ $namespace =~ ^[a-z0-9]([-a-z0-9]*[a-z0-9])?$ ]] || fail "$namespace is no name of a namespace"
case $provider in
    tcp) settings=() ;;
    rdma) settings=(--set "transport.rdmaResource=${RDMA_RESOURCE:-rdma/ib}") ;;
    *) fail "provider $provider is neither tcp nor rdma" ;;
esac
values=(--values "$here/values.yaml")
parts=("$release-kvgate-prefill" "$release-kvgate-decode")
if [ -n "$gateway" ]; then
    # The picker's values select the pods by the release's name.
    [ "$release" = llama31 ] || fail "--gateway: gaie-llama31/values.yaml is for RELEASE=llama31"
    values+=(--values "$here/gateway-values.yaml")
    parts+=(gaie-llama31-epp)
else
    parts+=(vllm-router-llama31)
fi
for tool in kubectl helm; do
    command -v "$tool" >/dev/null || fail "no $tool here"
done
[ -n "$image" ] || fail "KVGATE_IMAGE is not set: build the Dockerfile of this repository and push it to your registry, then KVGATE_IMAGE=registry/kvgate:0.1.0"
[[ $image =~ ^(.+):([A-Za-z0-9_][A-Za-z0-9._-]*)$ ]] || fail "KVGATE_IMAGE=$image has no tag"
settings+=(--set-string "image.repository=${BASH_REMATCH[1]}" --set-string "image.tag=${BASH_REMATCH[2]}")

# What the cluster must have. A dry run asks nothing.
if [ -z "$dry" ]; then
    kubectl version -o json >/dev/null 2>&1 || fail "kubectl reaches no cluster"
    gpus=$(kubectl get nodes -o jsonpath='{range .items[*]}{.status.allocatable.nvidia\.com/gpu}{"\n"}{end}' | awk '$1 >= 8' | wc -l)
    [ "$gpus" -ge 2 ] || fail "two nodes with 8 allocatable nvidia.com/gpu each are needed, found $gpus (kubectl describe nodes)"
    say "$gpus nodes have 8 GPUs"
    if [ -n "$gateway" ]; then
        for kind in inferencepools.inference.networking.k8s.io httproutes.gateway.networking.k8s.io; do
            kubectl get crd "$kind" >/dev/null 2>&1 || fail "no $kind: install the Gateway API and its inference extension first"
        done
    fi
fi
has() { # KIND NAME: whether it is there; a dry run takes it that nothing is
    [ -z "$dry" ] && kubectl -n "$namespace" get "$1" "$2" >/dev/null 2>&1
}
if [ -n "$dry" ] || ! kubectl get namespace "$namespace" >/dev/null 2>&1; then
    run kubectl create namespace "$namespace"
fi

# Secrets go by standard input: an argument is there for every user of this machine to read.
secret() { # NAME KEY VALUE
    say "+ kubectl -n $namespace create secret generic $1 --from-file=$2=(not shown)"
    [ -n "$dry" ] || printf '%s' "$3" | kubectl -n "$namespace" create secret generic "$1" --from-file="$2=/dev/stdin" >/dev/null
}
if has secret kvgate-token; then
    say "the secret kvgate-token is there"
else
    secret kvgate-token token "$(head -c 33 /dev/urandom | base64)"
fi
if has secret llm-d-hf-token; then
    say "the secret llm-d-hf-token is there"
elif [ -n "${HF_TOKEN:-}" ]; then
    secret llm-d-hf-token HF_TOKEN "$HF_TOKEN"
else
    fail "neither HF_TOKEN nor a secret llm-d-hf-token in $namespace: the weights are gated"
fi

run helm upgrade --install "$release" "$chart" --namespace "$namespace" "${values[@]}" "${settings[@]}"
if [ -n "$gateway" ]; then
    run helm upgrade --install gaie-llama31 oci://registry.k8s.io/gateway-api-inference-extension/charts/inferencepool --version v1.5.0 \
        --namespace "$namespace" --values "$here/gaie-llama31/values.yaml"
    say "+ kubectl -n $namespace apply -f gaie-llama31/httproute.yaml, for the Gateway ${GATEWAY:-inference-gateway}"
    [ -n "$dry" ] || sed "s/inference-gateway/${GATEWAY:-inference-gateway}/" "$here/gaie-llama31/httproute.yaml" | kubectl -n "$namespace" apply -f -
fi
for part in "${parts[@]}"; do
    run kubectl -n "$namespace" rollout status "deployment/$part" --timeout "${TIMEOUT:-60m}"
done
if [ -n "$gateway" ]; then
    say "ready: at the address of the Gateway ${GATEWAY:-inference-gateway} (kubectl -n $namespace get gateway)"
    exit
fi
say "ready: http://vllm-router-llama31.$namespace:10001 inside the cluster; from here:"
say "  kubectl -n $namespace port-forward service/vllm-router-llama31 10001 &"
say "  curl -s localhost:10001/v1/completions -H 'content-type: application/json' -d '{\"model\": \"meta-llama/Llama-3.1-8B-Instruct\", \"prompt\": \"The capital of France is\", \"max_tokens\": 8}'"
