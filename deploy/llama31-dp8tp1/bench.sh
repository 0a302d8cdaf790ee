#!/usr/bin/env bash
# The report's benchmark, from inside the cluster: bench.sh [--dry-run] [namespace] [more arguments for vllm bench serve]
#
# Runs `vllm bench serve` in a pod of its own with the engines' vLLM image, and prints what it prints. The first run after a start meets
# cold caches and first contacts between the pods: take the second.
set -euo pipefail
dry=''
if [ "${1:-}" = --dry-run ]; then
    dry=1
    shift
fi
namespace=${1:-llm-d-llama31}
shift || true
model=meta-llama/Llama-3.1-8B-Instruct
pod=kvgate-bench-$$
image=${VLLM_IMAGE:-vllm/vllm-openai:v0.32.0}
# The tokenizer comes with the model: the gated repository's token is in the secret that deploy.sh made.
overrides='{"spec": {"containers": [{"name": "'$pod'", "image": "'$image'", "stdin": true, "env": [{"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "llm-d-hf-token", "key": "HF_TOKEN"}}}], "command": ["sleep", "7200"]}]}}'
run() {
    printf 'bench.sh: +'
    printf ' %q' "$@"
    printf '\n'
    [ -n "$dry" ] || "$@"
}
command -v kubectl >/dev/null || { echo "bench.sh: no kubectl here" >&2; exit 1; }
run kubectl -n "$namespace" run "$pod" --image "$image" --restart Never --overrides "$overrides"
[ -n "$dry" ] || trap 'kubectl -n "$namespace" delete pod "$pod" --ignore-not-found --wait=false' EXIT
run kubectl -n "$namespace" wait --for condition=Ready "pod/$pod" --timeout 20m
run kubectl -n "$namespace" exec "$pod" -- vllm bench serve \
    --dataset-name random \
    --num-prompts 100 \
    --model "$model" \
    --random-input-len 2000 \
    --random-output-len 2000 \
    --endpoint /v1/completions \
    --max-concurrency 32 \
    --save-result \
    --ignore-eos \
    --served-model-name "$model" \
    --host vllm-router-llama31 \
    --port 10001 \
    "$@"
