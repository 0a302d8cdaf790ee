#!/usr/bin/env bash
# The seed's benchmark on simulated engines: seed.sh [--scale N] [--prompts N] [--out FILE]; see bench/seed.py for what is simulated.
# KVGATE_BIN names the binary (default: target/release/kvgate, which is built when it is missing).
set -euo pipefail
cd "$(dirname "$0")/.."
if [ -z "${KVGATE_BIN:-}" ]; then
    KVGATE_BIN=$PWD/target/release/kvgate
    [ -x "$KVGATE_BIN" ] || make build
fi
export KVGATE_BIN
exec "${PYTHON:-python3}" bench/seed.py "$@"
