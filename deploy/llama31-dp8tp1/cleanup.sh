#!/usr/bin/env bash
# Removes what deploy.sh installed: cleanup.sh [--dry-run] [--secrets] [namespace]
#
# The namespace stays, since others may use it, and so do the secrets unless --secrets is given. It may be run again.
set -euo pipefail
dry=''
secrets=''
while [[ ${1:-} == --* ]]; do
    case $1 in
        --dry-run) dry=1 ;;
        --secrets) secrets=1 ;;
        *)
            echo "cleanup.sh: usage: cleanup.sh [--dry-run] [--secrets] [namespace]" >&2
            exit 1
            ;;
    esac
    shift
done
namespace=${1:-llm-d-llama31}
release=${RELEASE:-llama31}
run() {
    printf 'cleanup.sh: +'
    printf ' %q' "$@"
    printf '\n'
    [ -n "$dry" ] || "$@"
}
for tool in kubectl helm; do
    command -v "$tool" >/dev/null || { echo "cleanup.sh: no $tool here" >&2; exit 1; }
done
run helm uninstall "$release" --namespace "$namespace" --ignore-not-found --wait
# What deploy.sh --gateway has added.
run helm uninstall gaie-llama31 --namespace "$namespace" --ignore-not-found --wait
run kubectl -n "$namespace" delete -f "$(dirname "$0")/gaie-llama31/httproute.yaml" --ignore-not-found
if [ -n "$secrets" ]; then
    run kubectl -n "$namespace" delete secret kvgate-token llm-d-hf-token --ignore-not-found
fi
