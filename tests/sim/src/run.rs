//! One seed, from its start to the verdict.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use turmoil::{Builder, Sim};

use crate::client;
use crate::evidence::Evidence;
use crate::hosts::Host;
use crate::plan::{self, Event, Fault};
use crate::pods::Pods;
use crate::workload::Ended;

/// Requests and faults are spread over this time.
pub const OVER: Duration = Duration::from_secs(8);
/// The simulation's step: nothing takes less to get from one host to another.
const TICK: Duration = Duration::from_millis(5);
/// No run takes longer: every wait in it has a deadline of its own.
const LONGEST: Duration = Duration::from_secs(400);
/// How long a message takes on a link that is well.
const LATENCY: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(15));

/// A run holds no more: everything in it is small. A peer's word for a length is not.
pub const MOST_MIB: u64 = 256;

/// What became of a seed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// The seed.
    pub seed: u64,
    /// Faults by kind.
    pub faults: BTreeMap<String, u64>,
    /// Requests of the load and of the recovery.
    pub requests: u64,
    /// With the right text.
    pub right: u64,
    /// With an error that says so.
    pub clear_errors: u64,
    /// Whose client had left.
    pub left: u64,
    /// With another text, or an end without a word.
    pub wrong: u64,
    /// Without an end.
    pub hung: u64,
    /// Staging slots, pins and blocks in use after everything had ended.
    pub leaked_slots: u64,
    /// Decodes that asked for remote KV.
    pub decodes: u64,
    /// Those that no receipt covers.
    pub decodes_without_receipt: u64,
    /// Promises that were broken.
    pub broken: Vec<String>,
    /// The most memory that the run's process held, in MiB; nothing where that is not known, or not told.
    #[serde(default)]
    pub peak_mib: Option<u64>,
    /// Simulated time, in milliseconds.
    pub simulated_ms: u64,
    /// What happened, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub log: Vec<String>,
}

impl Outcome {
    /// What the process has held is within bounds (the rest of invariant S).
    pub fn check_memory(&mut self, peak_mib: Option<u64>) {
        if peak_mib.is_some_and(|peak| peak > MOST_MIB) {
            self.broken.push(format!("BROKEN S: the run's process has held {peak_mib:?} MiB"));
        }
    }
}

/// What the client tells the one who makes the faults.
#[derive(Clone, Debug, Default)]
pub struct Shared(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    load_began: Option<Duration>,
    ended: Vec<Ended>,
    leaked: u64,
}

impl Shared {
    /// The load begins now.
    pub fn load_begins(&self) {
        self.0.lock().load_began = turmoil::sim_elapsed();
    }

    /// A request has ended.
    pub fn ended(&self, ended: Ended) {
        self.0.lock().ended.push(ended);
    }

    /// So many slots are still in use at the end.
    pub fn leaked(&self, slots: u64) {
        self.0.lock().leaked = slots;
    }

    fn load_began(&self) -> Option<Duration> {
        self.0.lock().load_began
    }
}

/// Panics of any task; a runtime keeps them to itself.
static PANICS: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Runs a seed. The process's chance must come from it already.
pub fn run(seed: u64, control: Option<&str>) -> Outcome {
    std::panic::set_hook(Box::new(|panic| PANICS.lock().push(panic.to_string())));
    let (evidence, shared) = (Evidence::default(), Shared::default());
    let pods = Pods::new(seed, control, evidence.clone());
    evidence.note(|| format!("seed {seed}: {:?}", pods.setup));
    let mut sim = Builder::new()
        .rng_seed(seed)
        .tick_duration(TICK)
        .simulation_duration(LONGEST)
        .min_message_latency(LATENCY.0)
        .max_message_latency(LATENCY.1)
        .tcp_capacity(1024)
        .enable_random_order()
        .build();
    for host in Host::ALL.into_iter().filter(|host| *host != Host::Client) {
        let pods = pods.clone();
        sim.host(host.name(), move || pods.clone().run(host));
    }
    sim.client(Host::Client.name(), client::run(seed, pods.clone(), shared.clone()));
    let mut faults = Faults::new(plan::events(seed, OVER), pods);
    loop {
        evidence.now(sim.elapsed());
        faults.make(&mut sim, shared.load_began());
        match sim.step() {
            Ok(false) => {}
            Ok(true) => break,
            Err(error) => {
                evidence.broken("S", format!("a process ends with an error: {error}"));
                break;
            }
        }
    }
    evidence.settle();
    for panic in std::mem::take(&mut *PANICS.lock()) {
        evidence.broken("S", panic);
    }
    judge(seed, &evidence, &shared, sim.elapsed())
}

fn judge(seed: u64, evidence: &Evidence, shared: &Shared, took: Duration) -> Outcome {
    let state = shared.0.lock();
    let count =
        |is: fn(&Ended) -> bool| u64::try_from(state.ended.iter().filter(|ended| is(ended)).count()).unwrap_or(0);
    evidence.with(|record| Outcome {
        seed,
        faults: record.faults.iter().map(|(kind, count)| ((*kind).to_owned(), *count)).collect(),
        requests: count(|_| true),
        right: count(|ended| *ended == Ended::Right),
        clear_errors: count(|ended| matches!(ended, Ended::Error(_))),
        left: count(|ended| *ended == Ended::Left),
        wrong: count(|ended| matches!(ended, Ended::Wrong(_))),
        hung: count(|ended| *ended == Ended::Hung),
        leaked_slots: state.leaked,
        decodes: record.decodes,
        decodes_without_receipt: record.without_receipt,
        broken: record.broken.clone(),
        peak_mib: None,
        simulated_ms: u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
        log: record.log.clone(),
    })
}

/// The faults that are to come and those that are on.
struct Faults {
    pods: Pods,
    to_come: Vec<Event>,
    on: Vec<(Duration, Fault)>,
}

impl Faults {
    fn new(mut events: Vec<Event>, pods: Pods) -> Self {
        events.reverse();
        Self { pods, to_come: events, on: Vec::new() }
    }

    fn make(&mut self, sim: &mut Sim<'_>, began: Option<Duration>) {
        let Some(began) = began else { return };
        let now = sim.elapsed();
        let (over, on): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.on).into_iter().partition(|(until, _)| *until <= now);
        self.on = on;
        for (_, fault) in over {
            self.end(sim, fault);
        }
        while let Some(event) = self.to_come.pop_if(|event| began + event.at <= now) {
            match event.fault.mark() {
                Some(mark) => self.pods.evidence.fault(mark, || format!("{:?} for {:?}", event.fault, event.lasts)),
                None => self.pods.evidence.note(|| format!("{:?} for {:?}", event.fault, event.lasts)),
            }
            self.begin(sim, event);
            self.on.push((now + event.lasts, event.fault));
        }
        self.restart_drained(sim, now);
    }

    fn begin(&self, sim: &mut Sim<'_>, event: Event) {
        let pods = &self.pods;
        match event.fault {
            Fault::Cut { from, to, both } => {
                pods.links.cut(from, to);
                if both {
                    pods.links.cut(to, from);
                    sim.partition(from.name(), to.name());
                } else {
                    sim.partition_oneway(from.name(), to.name());
                }
            }
            Fault::Slow { from, to, by } => sim.set_link_latency(from.name(), to.name(), by),
            Fault::Stall { host } => {
                for other in others(host) {
                    pods.links.cut(host, other);
                    pods.links.cut(other, host);
                    sim.hold(host.name(), other.name());
                }
            }
            Fault::Kill { host } => {
                pods.delay(host, event.lasts);
                sim.crash(host.name());
                pods.fabric.died(host);
                sim.bounce(host.name());
            }
            Fault::Down { host } => {
                sim.crash(host.name());
                pods.fabric.died(host);
            }
            Fault::Drain { host } => pods.stop(host),
            Fault::Storm { host, weather } => pods.fabric.weather(host, weather),
        }
    }

    fn end(&self, sim: &mut Sim<'_>, fault: Fault) {
        let pods = &self.pods;
        pods.evidence.note(|| format!("over: {fault:?}"));
        match fault {
            Fault::Cut { from, to, both } => {
                pods.links.mend(from, to);
                if both {
                    pods.links.mend(to, from);
                    sim.repair(from.name(), to.name());
                } else {
                    sim.repair_oneway(from.name(), to.name());
                }
            }
            Fault::Slow { from, to, .. } => sim.set_link_latency(from.name(), to.name(), LATENCY.0),
            Fault::Stall { host } => {
                for other in others(host) {
                    pods.links.mend(host, other);
                    pods.links.mend(other, host);
                    sim.release(host.name(), other.name());
                }
            }
            Fault::Kill { .. } => {}
            Fault::Down { host } => sim.bounce(host.name()),
            // It has had its time to end.
            Fault::Drain { host } => {
                if sim.is_host_running(host.name()) {
                    sim.crash(host.name());
                    pods.fabric.died(host);
                    sim.bounce(host.name());
                }
            }
            Fault::Storm { host, .. } => pods.fabric.weather(host, crate::fabric::Weather::default()),
        }
    }

    /// A process that has ended as it was told is started anew.
    fn restart_drained(&mut self, sim: &mut Sim<'_>, now: Duration) {
        let pods = self.pods.clone();
        self.on.retain(|(until, fault)| match fault {
            Fault::Drain { host } if !sim.is_host_running(host.name()) => {
                pods.fabric.died(*host);
                pods.delay(*host, until.saturating_sub(now));
                sim.bounce(host.name());
                false
            }
            Fault::Cut { .. }
            | Fault::Slow { .. }
            | Fault::Stall { .. }
            | Fault::Kill { .. }
            | Fault::Down { .. }
            | Fault::Drain { .. }
            | Fault::Storm { .. } => true,
        });
    }
}

fn others(host: Host) -> impl Iterator<Item = Host> {
    Host::ALL.into_iter().filter(move |other| *other != host)
}
