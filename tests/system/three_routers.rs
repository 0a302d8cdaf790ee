//! Three routers side by side on the same pods: none knows of the others, and what they decide is put right by the pods' sidecars.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use crate::process::{PATIENCE, Running, free_ports, nixl_is_here, request, wait_for};

/// A model of which a block is 4 KiB.
const MODEL: &str = "--model m --layers 2 --kv-heads 2 --head-size 16 --num-blocks 512";
/// Blocks of staging on each rank of D: three requests' worth.
const SLOTS: u64 = 40;
const RANKS: u16 = 2;
/// Requests of one router that run at the same time, and how many each of them makes.
const CLIENTS: usize = 6;
const EACH: usize = 4;

/// The pods, their sidecars, and an engine that answers by itself.
struct Pods {
    sidecar: Running,
    reference: Running,
    decode: Running,
    prefill: Running,
    prefill_sidecar: Running,
}

impl Pods {
    fn start() -> Self {
        let engine = |role: &str, ranks: u16, more: &str| {
            let side = free_ports(ranks);
            let args = format!(
                "sim --role {role} --listen 127.0.0.1:0 --side-channel 127.0.0.1:{side} --data-parallel-size {ranks} {MODEL} {more}"
            );
            (Running::start(&args), side)
        };
        let sidecar = |role: &str, engine: &Running, side: u16| {
            Running::start(&format!(
                "sidecar --role {role} --engine http://127.0.0.1:{} --engine-side-channel 127.0.0.1:{side} --data-parallel-size {RANKS} --listen 127.0.0.1:0 --side-channel-listen 127.0.0.1:0 --staging-bytes {} --staging-wait-ms 30000 --kv-lease 12s",
                engine.http,
                SLOTS * 4096
            ))
        };
        let (prefill, p_side) = engine("prefill", RANKS, "--kv-lease-ms 12000");
        // Slow, and of few requests at once: they have to wait in staging.
        let (decode, d_side) = engine("decode", RANKS, "--max-num-seqs 2 --tpot-ms 5");
        let (prefill_sidecar, own) = (sidecar("prefill", &prefill, p_side), sidecar("decode", &decode, d_side));
        Self { sidecar: own, reference: engine("both", 1, "").0, decode, prefill, prefill_sidecar }
    }

    fn router(&self) -> Running {
        let router = Running::start(&format!(
            "router --pd-disaggregation --prefill http://127.0.0.1:{},sidecar=http://127.0.0.1:{} --decode http://127.0.0.1:{},sidecar=http://127.0.0.1:{} --host 127.0.0.1 --port 0 --intra-node-data-parallel-size {RANKS} --kv-lease 12s --transfer-deadline-ms 40000",
            self.prefill.http, self.prefill_sidecar.http, self.decode.http, self.sidecar.http
        ));
        wait_for("a router's ranks", || {
            let (_, page) = router.request("GET", "/readyz", "");
            let ready = page["targets"].as_array()?.iter().filter(|target| target["ready"] == true).count();
            (ready == 2 * usize::from(RANKS)).then_some(())
        });
        router
    }

    /// (capacity, slots that cannot be given out now) of each rank of D.
    fn staging(&self) -> Vec<(u64, u64)> {
        let (_, page) = self.sidecar.request("GET", "/v1/ranks", "");
        let figure = |rank: &Value, name: &str| rank["staging"][name].as_u64().expect("a figure");
        let ranks = page["ranks"].as_array().expect("ranks").iter();
        ranks
            .map(|rank| {
                let taken = figure(rank, "used_blocks") + figure(rank, "quarantined_blocks");
                (figure(rank, "capacity_blocks"), taken)
            })
            .collect()
    }
}

fn ask(number: usize) -> String {
    let prompt: String = format!("request {number} of many says ").chars().cycle().take(190 + number % 7).collect();
    json!({ "model": "m", "prompt": prompt, "max_tokens": 12, "temperature": 0 }).to_string()
}

fn text(answer: &Value) -> String {
    answer["choices"][0]["text"].as_str().unwrap_or_default().to_owned()
}

/// One request whose server may die: its answer, if it came whole.
fn attempt(port: u16, body: &str) -> Option<(u16, Value)> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    let head = format!(
        "POST /v1/completions HTTP/1.1\r\nhost: test\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).ok()?;
    stream.write_all(body.as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let status = answer.split(' ').nth(1)?.parse().ok()?;
    Some((status, serde_json::from_str(answer.split_once("\r\n\r\n")?.1).ok()?))
}

/// A counter of a router's.
fn counted(router: &Running, name: &str) -> u64 {
    let mut stream = TcpStream::connect(("127.0.0.1", router.http)).expect("the router listens");
    stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n").expect("the request is sent");
    let mut page = String::new();
    stream.read_to_string(&mut page).expect("a page");
    let line = page.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_else(|| panic!("no {name} in\n{page}"));
    line.trim().parse().expect("a number")
}

#[test]
fn three_routers_share_the_same_pods_and_one_that_dies_harms_no_other() {
    if !nixl_is_here() {
        return;
    }
    let pods = Pods::start();
    let routers = [pods.router(), pods.router(), pods.router()];
    let expected: Vec<String> = (0..2 * 3 * CLIENTS * EACH)
        .map(|number| text(&request(pods.reference.http, "POST", "/v1/completions", &ask(number)).1))
        .collect();
    assert!(expected.iter().all(|text| !text.is_empty()), "the reference answers");
    let over = AtomicBool::new(false);
    let most = std::thread::scope(|scope| {
        // No rank ever holds more than its staging has, whatever three routers send it.
        let watching = scope.spawn(|| {
            let mut most = 0;
            while !over.load(Ordering::Relaxed) {
                for (capacity, taken) in pods.staging() {
                    assert_eq!(capacity, SLOTS);
                    assert!(taken <= capacity, "{taken} of {capacity} slots");
                    most = most.max(taken);
                }
                std::thread::sleep(Duration::from_millis(5));
            }
            most
        });
        let ports = routers.each_ref().map(|router| router.http);
        let all_right = |ports: &[u16], first: usize| {
            std::thread::scope(|scope| {
                for (client, port) in (0..CLIENTS).flat_map(|client| ports.iter().map(move |port| (client, *port))) {
                    let place = ports.iter().position(|of| *of == port).expect("its place") * CLIENTS + client;
                    let expected = &expected;
                    scope.spawn(move || {
                        for number in (0..EACH).map(|nth| first + place * EACH + nth) {
                            let (status, answer) = request(port, "POST", "/v1/completions", &ask(number));
                            assert_eq!((status, text(&answer)), (200, expected[number].clone()), "{number}: {answer}");
                        }
                    });
                }
            });
        };
        all_right(&ports, 0);
        for router in &routers {
            let receipts = counted(router, "router_receipts_total");
            assert!(receipts >= (CLIENTS * EACH) as u64, "each of its requests had a receipt: {receipts}");
        }
        let [doomed, others @ ..] = routers;
        let (victim, others) = (doomed.http, others.each_ref().map(|router| router.http));
        std::thread::scope(|scope| {
            // Whatever becomes of these: the router dies while it works on them.
            let lost: Vec<_> = (0..CLIENTS)
                .map(|client| {
                    scope.spawn(move || attempt(victim, &ask(client)).is_some_and(|(status, _)| status == 200))
                })
                .collect();
            let survivors = scope.spawn(|| all_right(&others, 3 * CLIENTS * EACH));
            wait_for("the first router's requests", || {
                let (_, page) = doomed.request("GET", "/readyz", "");
                (page["inside"].as_u64()? >= 3).then_some(())
            });
            drop(doomed);
            let answered = lost.into_iter().map(|one| one.join().expect("a client"));
            assert!(answered.filter(|whole| *whole).count() < CLIENTS, "it died with requests in it");
            survivors.join().expect("the other routers' clients");
        });
        // What the dead one had claimed lapses.
        wait_for("the end of what the dead router left", || {
            pods.staging().iter().all(|(_, taken)| *taken == 0).then_some(())
        });
        over.store(true, Ordering::Relaxed);
        watching.join().expect("the watcher")
    });
    assert!(most * 2 > SLOTS, "staging was short: at most {most} of {SLOTS} slots were taken");
}
