# syntax=docker/dockerfile:1
# One image for kvgate's sidecar and router:
#   docker buildx build --platform linux/amd64,linux/arm64 --build-arg GIT_SHA=$(git rev-parse --short=12 HEAD) -t REGISTRY/kvgate:VERSION --push .
#
# It holds no NIXL: the wheels' licence lets you load it, not hand it on. In a pod it comes from the vLLM image (deploy/helm does that);
# --build-arg NIXL=wheel makes an image with it for your own registry.
#
# Reproducible: Cargo.lock and the NIXL wheel are pinned here; pin the two base images by digest and set SOURCE_DATE_EPOCH, as in
#   --build-arg BASE_IMAGE=debian:trixie-slim@sha256:… --build-arg RUST_IMAGE=rust:1.90-trixie@sha256:… --build-arg SOURCE_DATE_EPOCH=$(git log -1 --format=%ct)
# (with buildx: --output type=image,rewrite-timestamp=true). No step fetches anything that is not pinned.
ARG RUST_IMAGE=rust:1.90-trixie
ARG PYTHON_IMAGE=python:3.13-slim-trixie
# It brings what NIXL needs of a system: libstdc++, libssl and zlib. A base with an older glibc than the builder's cannot run the binary.
ARG BASE_IMAGE=debian:trixie-slim
ARG NIXL=none

FROM ${RUST_IMAGE} AS build
ARG GIT_SHA=unknown
# Paths of this build must not get into the binary, nor what an earlier build left.
ENV KVGATE_GIT_SHA=${GIT_SHA} \
    CARGO_INCREMENTAL=0 \
    CARGO_PROFILE_RELEASE_STRIP=debuginfo \
    RUSTFLAGS="--remap-path-prefix=/src=kvgate --remap-path-prefix=/usr/local/cargo=cargo"
WORKDIR /src
COPY . .
RUN cargo build --release --locked --bin kvgate

FROM ${PYTHON_IMAGE} AS wheel
ARG NIXL_WHEEL=nixl-cu13==1.5.1
ARG NIXL_WHEEL_SHA256=
WORKDIR /src
COPY scripts/fetch-nixl scripts/
COPY deploy/helm/kvgate/files/copy-nixl.py deploy/
RUN scripts/fetch-nixl && python3 deploy/copy-nixl.py /nixl target/nixl/*

# A stage with no command but COPY, so that a build for another architecture runs nothing of it.
FROM ${BASE_IMAGE} AS nixl-none
FROM nixl-none AS nixl-wheel
COPY --from=wheel /nixl /opt/kvgate/nixl
ENV KVGATE_NIXL_LIBRARY=/opt/kvgate/nixl/lib

# hadolint ignore=DL3006
FROM nixl-${NIXL}
ARG GIT_SHA=unknown
ARG VERSION=0.1.0
LABEL org.opencontainers.image.title="kvgate" \
      org.opencontainers.image.description="Dispatches decode only after its KV cache has arrived: sidecar and router for vLLM's prefill/decode over NIXL" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${GIT_SHA}" \
      org.opencontainers.image.base.name="docker.io/library/debian:trixie-slim"
COPY --from=build /src/target/release/kvgate /usr/local/bin/kvgate
COPY LICENSE /usr/share/doc/kvgate/LICENSE
# A number, so that Kubernetes' runAsNonRoot can see that it is not root. Nothing is written: the root may be read-only.
USER 65532:65532
WORKDIR /
# The sidecar's API, the router's and its metrics.
EXPOSE 7700 10001 29000
# Docker's own supervision; Kubernetes asks /livez itself. For a router: -e KVGATE_HEALTH_URL=http://127.0.0.1:10001/livez
HEALTHCHECK --interval=10s --timeout=6s --start-period=10s CMD ["/usr/local/bin/kvgate", "health"]
ENTRYPOINT ["/usr/local/bin/kvgate"]
CMD ["--help"]
