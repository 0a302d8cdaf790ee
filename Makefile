# What a fresh machine needs beyond this file: git, make, a C and C++ compiler, the Rust toolchain, Python 3 with pip.
SHELL := /bin/bash
CARGO ?= cargo
DEMO_ARGS ?=
CHAOS_ARGS ?=
BENCH_ROWS ?=
BENCH_AREAS ?=
PROFILE ?=
RECORD ?=
# Any Python from 3.9 runs the harness; the engines need a CPython 3.11, which it looks for itself.
PYTHON ?= python3

.PHONY: help setup setup-browser build demo soak chaos overload test test-vllm bench bench-quick bench-nixl bench-vllm bench-router bench-scale bench-sidecar bench-sites profile-router profile-sidecar lint fmt bindings-check kernels kernels-check clean

help:  ## list the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "%-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup:  ## fetch the NIXL runtime (NIXL_WHEEL=nixl-cu13==1.5.1) and promtool below target
	@scripts/fetch-nixl
	@scripts/fetch-promtool || echo "tests that need promtool will say SKIPPED"

setup-browser:  ## fetch Debian's headless Chromium (about 100 MB) and schemathesis below target, for the tests of /debug and of the API
	@scripts/fetch-chromium
	@scripts/fetch-schemathesis

build: setup  ## build the binary: target/release/kvgate
	$(CARGO) build --release --locked

demo: setup  ## prefill pod, decode pod, sidecars, router on this machine; checks every text (DEMO_ARGS="--dp 8")
	$(CARGO) build --locked
	target/debug/kvgate demo $(DEMO_ARGS)

soak:  ## router and sidecars over a simulated network and a simulated NIXL, with faults: SEEDS=300, or SEED=17 with its events
	$(CARGO) build --locked -p soak
	@target/debug/soak $(if $(SEED),--seed $(SEED),--seeds $(or $(SEEDS),300) --report target/soak.json)

.PHONY: fuzz
fuzz:  ## libFuzzer over all that reads bytes of others: SECONDS_EACH=60, TARGET=bodies, JOBS=2 at a time, MERGE=1 to keep what was found
	@scripts/fuzz $(TARGET)

chaos: setup  ## real processes over real NIXL under load, killed, frozen, drained and starved for 4 minutes; target/chaos/report.json (SEED=17)
	$(CARGO) build --locked
	@$(PYTHON) tests/chaos/run.py $(if $(SEED),--seed $(SEED)) $(CHAOS_ARGS)

overload: setup  ## ten times of what a deployment takes, for a minute: goodput, 429, memory, recovery; target/chaos/overload.json
	$(CARGO) build --locked
	@$(PYTHON) tests/chaos/overload.py

test: setup $(if $(findstring browser,$(REQUIRE)),setup-browser)  ## every test, with what each measured or SKIPPED; REQUIRE=nixl,browser turns a skip into a failure
	$(CARGO) test --workspace --locked -- --show-output

.PHONY: removals sanitize mutants
removals:  ## takes away, one by one, what protects a promise, and sees its test fail (REMOVALS="lease quarantine")
	@$(PYTHON) tests/removals/run.py $(REMOVALS)

sanitize: setup  ## the tests of the crates that call C, under AddressSanitizer and LeakSanitizer (CRATES="nixl")
	@scripts/sanitize $(CRATES)

mutants:  ## changes the state machines, one operator or match arm at a time, and sees their tests fail (needs cargo-mutants; MUTANTS="slots")
	$(CARGO) mutants --package kv $(addprefix --file kv/src/,$(addsuffix .rs,$(or $(MUTANTS),transfer slots lease collect shards readiness))) --output target -- --lib

test-vllm: setup  ## beside an unmodified vLLM pair (Python 3.11, 6 GB of disk and of memory); VLLM_VERSION=0.32.0
	$(CARGO) build --locked
	@$(PYTHON) tests/vllm/run.py

bench: build  ## every bench beside its peers within 30 minutes (BENCH_MINUTES); target/bench/results.json, tables and plots of docs/benchmarks.md (BENCH_AREAS="nixl router")
	$(CARGO) build --release --locked -p bench-nixl -p bench-plots -p bench-router -p bench-scale -p bench-sidecar
	$(CARGO) build --profile hot --locked -p bench-hot
	@$(PYTHON) bench/run.py $(BENCH_AREAS)

bench-quick:  ## instructions of the hot paths beside stored ones, over 5 % more is a failure (BENCH_ROWS="router kv", RECORD=1)
	$(CARGO) build --profile hot --locked -p bench-hot
	@$(PYTHON) bench/quick.py $(if $(RECORD),--record) $(BENCH_ROWS)

bench-vllm: build  ## the same pair: what the gate costs and saves, as ratios; target/bench/vllm.json (BENCH_ROWS="tiny seats-8")
	@$(PYTHON) bench/vllm.py $(BENCH_ROWS)

bench-router: build  ## kvgate's router beside the peer's, stub engines behind both; target/bench/router.json (BENCH_ROWS="latency chunks")
	$(CARGO) build --release --locked -p bench-router
	@$(PYTHON) bench/router.py $(BENCH_ROWS)

bench-nixl: build  ## reads between two processes beside NIXL's Python package, its C API and memcpy; target/bench/nixl.json (BENCH_ROWS="tcp idle")
	$(CARGO) build --release --locked -p bench-nixl
	@$(PYTHON) bench/nixl.py $(BENCH_ROWS)

bench-sidecar: build  ## what the sidecar adds to a transfer, and its memory; target/bench/sidecar.json (BENCH_ROWS="one many")
	$(CARGO) build --release --locked -p bench-sidecar
	@$(PYTHON) bench/sidecar.py $(BENCH_ROWS)

bench-scale: build  ## what a request costs while ranks, handles and rates grow; target/bench/scale.json (BENCH_ROWS="router-ranks sidecar-rate")
	$(CARGO) build --release --locked -p bench-router -p bench-scale
	@$(PYTHON) bench/scale.py $(BENCH_ROWS)

bench-sites:  ## who asks for memory while the router serves, by call site (SITES="direct 40"; needs valgrind)
	$(CARGO) build --release --locked -p bench-router
	$(CARGO) build --profile hot --locked -p bench-hot
	@$(PYTHON) bench/sites.py $(SITES)

.PHONY: deploy-check deploy-manifests image-check
deploy-check: setup  ## chart, manifests, Dockerfile, scripts and alerts of deploy/, one line per document; no cluster needed
	@scripts/fetch-deploy-tools
	$(CARGO) build --locked
	@scripts/deploy-check

deploy-manifests:  ## render deploy/manifests and what else is kept as rendered from the chart
	@scripts/fetch-deploy-tools
	@scripts/deploy-check --refresh

.PHONY: dist
dist: build  ## the release's tarball in target/dist: binary, completions, man pages, chart, SBOM, licences; no NIXL
	@scripts/dist

image-check:  ## build the Dockerfile with buildah and stand-ins for its base images (root, 6 GB); run it non-root on a read-only root
	@scripts/image-check wheel

.PHONY: bench-pinned
bench-pinned: build  ## P with a small KV cache while D is the bottleneck, gated beside direct; target/bench/pinned.json
	@$(PYTHON) bench/pinned.py

profile-router: build  ## flame graph of the router under load: target/bench/profile/router-stage.svg (PROFILE=direct, PROFILE=stream)
	$(CARGO) build --release --locked -p bench-router
	@$(PYTHON) bench/profile.py router $(PROFILE)

profile-sidecar: build  ## flame graph of a decode pod's sidecar under load: target/bench/profile/sidecar.svg
	$(CARGO) build --release --locked -p bench-sidecar
	@$(PYTHON) bench/profile.py sidecar

lint: deny  ## formatting, clippy and docs, warnings are errors; licences and sources of what is built
	$(CARGO) fmt --all --check
	$(CARGO) fmt --manifest-path fuzz/Cargo.toml --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --no-deps --locked --document-private-items
	@! $(CARGO) tree --locked -p router --edges normal --prefix none | grep -iE '^(nixl|cuda)' || { echo "router must not depend on NIXL or CUDA"; exit 1; }

.PHONY: deny
deny:  ## licences, sources and doubled versions of what is built, as deny.toml says; where there is a network: DENY="advisories licenses bans sources"
	@scripts/deny $(DENY)

fmt:  ## format the code
	$(CARGO) fmt --all

bindings-check:  ## regenerate nixl-sys's bindings and compare (installs libclang when missing)
	@scripts/bindings-check

kernels:  ## compile cuda/kernels to PTX (fetches nvcc, 120 MB of wheels, below target)
	@scripts/kernels

.PHONY: test-gpu gpu-bundle bench-gpu
test-gpu:  ## everything that needs a GPU, with goals (REQUIRE=gpu: a missing one is a failure); BUNDLE=FILE: what gpu-bundle packed
	@scripts/test-gpu $(BUNDLE)

gpu-bundle: setup  ## pack binaries, tests and NIXL for test-gpu on a machine that cannot build: target/gpu/bundle.tar.xz
	@scripts/gpu-bundle

bench-gpu: setup  ## GPU memory through NIXL beside a plain device copy, the kernels beside the card's memory bandwidth
	$(CARGO) build --release --locked -p bench-gpu
	@target/release/bench-gpu --json target/bench-gpu.json

kernels-check:  ## compile them anew and compare with what is checked in
	@scripts/kernels-check

clean:  ## remove what the build made
	$(CARGO) clean
