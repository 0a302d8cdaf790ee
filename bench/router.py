#!/usr/bin/env python3
"""`make bench-router`: kvgate's router beside the peer's (`vllm-router`), stub engines behind both; writes target/bench/router.json.

  router.py [ROW…]             rows: latency throughput chunks first-token streams start dead (all by default)
  KVGATE_BIN=PATH              the binary under test (target/release/kvgate)
  BENCH_ROUTER_BIN=PATH        stubs and load generator (target/release/bench-router)

Router, stubs and load generator share the machine's cores. Figures are measured in turn, round by round
(legs, peer, direct, stage, legs, peer, …), so that the machine's noise falls on all of them; what is printed is the median of the
rounds with the lowest and the highest. `streams` and `dead` are one sample each. The stubs count what reached them: a router
that left out a leg is no measurement. "legs" is a client that calls P and then D itself, without a router.
CPU time is the router's own, from /proc/PID/stat. Prints one table; exit 0 when everything could be measured.
"""

import json
import os
import pathlib
import resource
import shutil
import socket
import statistics
import subprocess
import sys
import time

sys.dont_write_bytecode = True
from processes import Failure, Process, end_with_signals, free_port, speaker, versions

TREE = pathlib.Path(__file__).resolve().parents[1]
OUT = TREE / "target" / "bench"
WORK = OUT / "router"
KVGATE = pathlib.Path(os.environ.get("KVGATE_BIN") or TREE / "target" / "release" / "kvgate")
TOOL = pathlib.Path(os.environ.get("BENCH_ROUTER_BIN") or TREE / "target" / "release" / "bench-router")
PEER = "vllm-router==0.1.17"
PATIENCE = 30
ROUNDS = 5
ROUTERS = ("peer", "direct", "stage")
say = speaker("bench-router")
ROWS = ("latency", "throughput", "chunks", "first-token", "streams", "start", "dead")

NGINX = """\
worker_processes auto; daemon off; pid {work}/nginx.pid; error_log {work}/nginx.log warn;
events {{ worker_connections 4096; }}
http {{
  access_log off; client_body_temp_path {work}/t1; proxy_temp_path {work}/t2; fastcgi_temp_path {work}/t3;
  uwsgi_temp_path {work}/t4; scgi_temp_path {work}/t5; keepalive_requests 1000000;
  upstream engine {{ server {engine}; keepalive 256; keepalive_requests 1000000; }}
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location / {{ proxy_pass http://engine; proxy_http_version 1.1; proxy_set_header Connection ""; }}
  }}
}}
"""


# Processes ------------------------------------------------------------------------------------------------------------


def get(port, path):
    """The answer's body."""
    with socket.create_connection(("127.0.0.1", port), timeout=5) as peer:
        peer.sendall(f"GET {path} HTTP/1.1\r\nhost: bench\r\nconnection: close\r\n\r\n".encode())
        peer.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: peer.recv(65536), b"")).partition(b"\r\n\r\n")[2]


def health(port):
    """Whether /health answers 200 now."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as peer:
            peer.sendall(b"GET /health HTTP/1.1\r\nhost: bench\r\nconnection: close\r\n\r\n")
            return peer.recv(64).split(b" ")[1:2] == [b"200"]
    except OSError:
        return False


class Router(Process):
    """A router under test; `ready_ms` is the time from its start to its first healthy answer."""

    def __init__(self, kind, prefill, decode, sidecars):
        self.port = free_port()
        if kind == "peer":
            command = [OUT / "venv" / "bin" / "vllm-router", "--vllm-pd-disaggregation", "--policy", "round_robin",
                       "--port", self.port, "--prometheus-port", free_port()]
            command += [word for url in prefill for word in ("--prefill", f"http://{url}")]
            command += ["--decode", f"http://{decode}"]
        else:
            command = [KVGATE, "router", "--pd-disaggregation", "--port", self.port, "--gate", kind]
            for side, engine, sidecar in zip(["prefill"] * len(prefill) + ["decode"], [*prefill, decode], sidecars):
                command += [f"--{side}", f"http://{engine},sidecar=http://{sidecar}"]
        super().__init__(kind, command, WORK)
        while not health(self.port):
            if time.monotonic() - self.started > PATIENCE or self.child.poll() is not None:
                raise Failure(f"{kind} does not become ready; see {WORK / kind}.log")
            time.sleep(0.001)
        self.ready_ms = (time.monotonic() - self.started) * 1000
        self.address = f"127.0.0.1:{self.port}"


class Nginx(Process):
    """One hop to an engine: what a proxy costs that does nothing."""

    def __init__(self, engine):
        port = free_port()
        config = WORK / "nginx.conf"
        config.write_text(NGINX.format(work=WORK, engine=engine, port=port))
        super().__init__("nginx", [nginx_binary(), "-c", config, "-p", WORK], WORK)
        self.address = f"127.0.0.1:{port}"
        while not health(port):
            if time.monotonic() - self.started > PATIENCE or self.child.poll() is not None:
                raise Failure(f"nginx does not start; see {WORK}/nginx.log")
            time.sleep(0.01)


class Stub(Process):
    """Engines and sidecars."""

    def __init__(self, **counts):
        arguments = [word for role, count in counts.items() for word in (f"--{role}", str(count))]
        super().__init__("stub", [TOOL, "stub", *arguments], WORK, stdout=subprocess.PIPE)
        addresses = json.loads(self.child.stdout.readline() or "{}")
        if not addresses:
            raise Failure(f"the stubs do not start; see {WORK}/stub.log")
        self.prefill, self.decode, self.sidecar = (addresses[role] for role in ("prefill", "decode", "sidecar"))

    def counts(self):
        """Work that each role has been asked for so far."""
        return json.loads(get(int(self.prefill[0].rpartition(":")[2]), "/counts"))


def load(*to, **options):
    """Runs the load generator and returns its results."""
    command = [str(TOOL), "load"]
    command += [word for address in to for word in ("--to", address)]
    for name, value in options.items():
        command += [f"--{name.replace('_', '-')}"] + ([] if value is True else [str(value)])
    ran = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=120)
    if ran.returncode:
        raise Failure(f"the load generator fails: {ran.stderr.strip()}")
    return json.loads(ran.stdout)


def clean(result, what):
    """The result, which must be without errors."""
    if result["errors"]:
        raise Failure(f"{what}: {result['errors']} of {result['errors'] + result['requests']} fail: {result['error']}")
    return result


# What is compared with ------------------------------------------------------------------------------------------------


def install_peer():
    venv = OUT / "venv"
    program = venv / "bin" / "vllm-router"
    stamp = venv / ".installed"
    if program.exists() and stamp.exists() and stamp.read_text() == PEER:
        return
    say(f"installing {PEER} below target/bench/venv")
    subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    subprocess.run([venv / "bin" / "python", "-m", "pip", "install", "--quiet", PEER], check=True, stdout=sys.stderr)
    stamp.write_text(PEER)


def nginx_binary():
    found = shutil.which("nginx", path=os.environ.get("PATH", "") + ":/usr/sbin")
    if found:
        return found
    folder = OUT / "nginx"
    binary = folder / "usr" / "sbin" / "nginx"
    if not binary.exists():
        say("fetching Debian's nginx below target/bench/nginx")
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(["apt-get", "download", "nginx"], check=True, cwd=folder, stdout=sys.stderr)
        for package in folder.glob("nginx_*.deb"):
            subprocess.run(["dpkg", "-x", package.name, "."], check=True, cwd=folder)
    return str(binary)


# Measurements ---------------------------------------------------------------------------------------------------------


class Bench:
    def __init__(self):
        self.stub = Stub(prefill=1, decode=1, sidecar=3)
        self.figures = {}
        self.routers = {}
        self.nginx = None

    def router(self, kind, prefill=None):
        prefill = prefill or self.stub.prefill
        return Router(kind, prefill, self.stub.decode[0], self.stub.sidecar[:len(prefill)] + self.stub.sidecar[2:])

    def up(self):
        """All routers together: one that gets no requests does next to nothing."""
        self.routers = self.routers or {kind: self.router(kind) for kind in ROUTERS}
        self.nginx = self.nginx or Nginx(self.stub.decode[0])

    def targets(self, *kinds):
        """What a round goes through: name, addresses, process."""
        self.up()
        known = {"legs": ((self.stub.prefill[0], self.stub.decode[0]), None), "nginx": ((self.nginx.address,), self.nginx)}
        known.update({kind: ((router.address,), router) for kind, router in self.routers.items()})
        return [(kind, *known[kind]) for kind in kinds]

    def through(self, kind, to, **options):
        """A load without errors, each request of which went the whole way: P, the sidecar where there is one, and D."""
        before = self.stub.counts()
        result = clean(load(*to, **options), kind)
        did = {role: count - before[role] for role, count in self.stub.counts().items()}
        asked = result["requests"] + options.get("warm", 0) * options["connections"]
        legs = {"nginx": ("decodes",), "stage": ("prefills", "transfers", "decodes")}.get(kind, ("prefills", "decodes"))
        if did != {leg: asked if leg in legs else 0 for leg in did}:
            raise Failure(f"{kind}: {asked} requests, but the stubs were asked for {did}")
        return result

    def note(self, figure, kind, value):
        self.figures.setdefault(figure, {}).setdefault(kind, []).append(value)

    def added(self, figure, key, **options):
        """p50 beyond that of the client without a router."""
        for _ in range(ROUNDS):
            without = None
            for kind, to, _ in self.targets("legs", *ROUTERS):
                p50 = self.through(kind, to, **options)[key]["p50"]
                self.note(f"{figure}_us", kind, p50)
                without = p50 if kind == "legs" else without
                if kind != "legs":
                    self.note(f"{figure}_added_us", kind, p50 - without)

    def latency(self):
        self.added("latency", "whole_us", connections=1, requests=2000, warm=100)

    def first_token(self):
        self.added("first_token", "first_us", connections=64, seconds=3, stream=True, tokens=32, pace_us=20000)

    def throughput(self):
        for _ in range(3):
            for kind, to, process in self.targets("legs", *ROUTERS, "nginx"):
                before = process and process.cpu()
                result = self.through(kind, to, connections=64, seconds=4)
                self.note("requests_per_s", kind, result["requests"] / result["seconds"])
                if process:
                    self.note("cpu_s_per_1000", kind, (process.cpu() - before) / result["requests"] * 1000)

    def chunks(self):
        for _ in range(ROUNDS):
            for kind, to, process in self.targets(*ROUTERS, "nginx"):
                before = process.cpu()
                result = self.through(kind, to, connections=16, requests=16, stream=True, tokens=20000)
                if result["events"] != 16 * 20001:
                    raise Failure(f"{kind}: {result['events']} events came, {16 * 20001} were sent")
                self.note("cpu_s_per_million_chunks", kind, (process.cpu() - before) / result["events"] * 1e6)

    def streams(self):
        for kind in ROUTERS:
            router = self.router(kind)
            time.sleep(1)
            self.note("rss_ready_mb", kind, router.rss())
            command = [TOOL, "load", "--to", router.address, "--connections", "1000", "--requests", "1000", "--stream",
                       "--tokens", "60", "--pace-us", "100000"]
            client = Process("streams-load", command, WORK, stdout=subprocess.PIPE)
            highest = 0
            while client.child.poll() is None:
                highest = max(highest, router.rss())
                time.sleep(0.1)
            result = clean(json.loads(client.child.stdout.read()), kind)
            client.end()
            if result["events"] != 1000 * 61:
                raise Failure(f"{kind}: {result['events']} events came, {1000 * 61} were sent")
            self.note("rss_1000_streams_mb", kind, highest)
            router.end()

    def start(self):
        for _ in range(ROUNDS):
            for kind in ROUTERS:
                router = self.router(kind)
                self.note("start_ms", kind, router.ready_ms)
                router.end()

    def dead(self):
        for kind in ROUTERS:
            doomed = Stub(prefill=1)
            router = self.router(kind, [self.stub.prefill[0], doomed.prefill[0]])
            clean(load(router.address, connections=4, requests=100), kind)
            doomed.child.kill()
            doomed.end()
            self.note("errors_of_200", kind, load(router.address, connections=4, requests=200)["errors"])
            router.end()


# The table ------------------------------------------------------------------------------------------------------------


def shown(values, digits):
    if not values:
        return "–"
    middle = f"{statistics.median(values):,.{digits}f}"
    return middle if len(values) == 1 else f"{middle} ({min(values):,.{digits}f}–{max(values):,.{digits}f})"


def rows(figures):
    """(row, figure, digits, what it is beside, target, measured, met)"""

    def middle(figure, kind):
        return statistics.median(figures[figure][kind])

    def ratio(figure, kind, at_most=None, at_least=None):
        peer = middle(figure, "peer")
        if peer <= 0:
            raise Failure(f"{figure}: {peer:.0f} for the peer is the machine's noise; run it again on an idle machine")
        value = middle(figure, kind) / peer
        return (f"≤ {at_most} ×", f"{value:.2f} ×", value <= at_most) if at_most else (
            f"≥ {at_least} ×", f"{value:.2f} ×", value >= at_least)

    def bound(figure, most, unit=""):
        """The worse one of both gates."""
        value = max(middle(figure, kind) for kind in ("direct", "stage"))
        return f"≤ {most}{unit}", f"{value:.4g}{unit}", value <= most

    if "latency_added_us" in figures:
        figure = "latency_added_us"
        yield "added latency p50, 1 client, µs", figure, 0, ("legs", "latency_us"), ratio(figure, "direct", at_most=0.33)
        yield "the same, --gate stage", figure, 0, None, ratio(figure, "stage", at_most=0.5)
    if "requests_per_s" in figures:
        figure = "requests_per_s"
        times, share = (middle(figure, "direct") / middle(figure, other) for other in ("peer", "legs"))
        target = ("≥ 4 × or ≥ 0.8 of legs (direct)", f"{times:.2f} ×, {share:.2f} of legs", times >= 4 or share >= 0.8)
        yield "requests/s, 64 clients", figure, 0, ("legs", figure), target
        figures["requests_per_cpu_s"] = {
            kind: [1000 / cpu for cpu in values] for kind, values in figures["cpu_s_per_1000"].items()}
        figure = "requests_per_cpu_s"
        yield "requests per CPU second (target: direct)", figure, 0, ("nginx", figure), ratio(figure, "direct", at_least=4)
        figure = "cpu_s_per_1000"
        yield "CPU s per 1,000 requests", figure, 3, ("nginx", figure), bound(figure, 0.06, " s")
    if "cpu_s_per_million_chunks" in figures:
        figure = "cpu_s_per_million_chunks"
        yield "CPU s per million chunks", figure, 2, ("nginx", figure), bound(figure, 1.5, " s")
    if "first_token_added_us" in figures:
        figure = "first_token_added_us"
        beside = ("legs", "first_token_us")
        yield "added first token p50, 64 streams, µs (target: direct)", figure, 0, beside, ratio(figure, "direct", at_most=0.3)
    if "rss_ready_mb" in figures:
        for figure, name, most in (("rss_ready_mb", "RSS ready, MB", 20), ("rss_1000_streams_mb", "RSS 1,000 streams, MB", 80)):
            yield name, figure, 1, None, bound(figure, most, " MB")
    if "start_ms" in figures:
        yield "start to ready, ms", "start_ms", 0, None, bound("start_ms", 50, " ms")
    if "errors_of_200" in figures:
        worst = max(middle("errors_of_200", kind) for kind in ("direct", "stage"))
        yield "one of two P dead, errors of 200", "errors_of_200", 0, None, ("0", f"{worst:.0f}", worst == 0)


def table(figures):
    lines = [("", "peer", "direct", "stage", "beside", "target", "measured", "")]
    for name, figure, digits, beside, (target, measured, met) in rows(figures):
        cells = [shown(figures[figure].get(kind), digits) for kind in ROUTERS]
        other = f"{beside[0]} {shown(figures[beside[1]][beside[0]], digits)}" if beside else ""
        lines.append((name, *cells, other, target, measured, "met" if met else "short"))
    widths = [max(len(line[at]) for line in lines) for at in range(len(lines[0]))]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip())
    return [dict(zip(("row", *lines[0][1:-1], "verdict"), line)) for line in lines[1:]]


def main():
    wanted = sys.argv[1:] or ROWS
    unknown = [row for row in wanted if row not in ROWS]
    if unknown:
        sys.exit(f"bench-router: no such row: {', '.join(unknown)} (rows: {' '.join(ROWS)})")
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    end_with_signals()
    shutil.rmtree(WORK, ignore_errors=True)
    WORK.mkdir(parents=True)
    began = time.monotonic()
    try:
        install_peer()
        bench = Bench()
        for row in wanted:
            say(f"{row} (load {os.getloadavg()[0]:.1f})")
            getattr(bench, row.replace("-", "_"))()
        printed = table(bench.figures)
    except (Failure, subprocess.SubprocessError, OSError, ValueError) as failure:
        sys.exit(f"bench-router: {failure}")
    finally:
        Process.end_all()
    result = {"machine": versions(TREE, KVGATE), "peer": PEER, "seconds": round(time.monotonic() - began), "rows": printed,
              "figures": bench.figures}
    (OUT / "router.json").write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
