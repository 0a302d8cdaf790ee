//! Builds, loads and steers the mock.

use std::{
    ffi::{c_int, c_long},
    path::Path,
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use libloading::Library;
use nixl::{
    Agent, AgentConfig, AgentName, Fabric, HugePages, LocalDescs, Memory, PeerMemory, Read, Region, RemoteDescs,
};
use nixl_sys::Api;
use parking_lot::{Mutex, MutexGuard};

pub(crate) const DEADLINE: Duration = Duration::from_secs(10);
pub(crate) const BLOCK: u64 = 64 << 10;
/// More polls than any test waits for.
pub(crate) const FOR_EVER: i64 = 1 << 40;

/// What can be steered, in the order of the mock's `enum knob`.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Knob {
    /// Polls until a transfer ends; 0: it ends inside the post.
    Polls,
    /// How it ends.
    EndStatus,
    /// How a post is refused; 0: it is not.
    PostStatus,
    /// So many releases are refused.
    RefusedReleases,
    /// Bytes of a released transfer that had not ended well land after so many ms; 0: never.
    LateMs,
    /// How the end of an agent is refused; 0: it is not.
    DestroyStatus,
    /// A post takes so many ms.
    StuckPostMs,
}

const KNOBS: [Knob; 7] = [
    Knob::Polls,
    Knob::EndStatus,
    Knob::PostStatus,
    Knob::RefusedReleases,
    Knob::LateMs,
    Knob::DestroyStatus,
    Knob::StuckPostMs,
];

struct Built {
    library: Library,
    api: &'static Api,
    _folder: tempfile::TempDir,
}

/// The mock, for one test at a time.
pub(crate) struct Mock {
    built: &'static Built,
    _alone: MutexGuard<'static, ()>,
    /// Handles of a test before this one whose agent could not be destroyed.
    stuck: i64,
}

fn build() -> Built {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/mock");
    let target = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let mut build = cc::Build::new();
    build.cargo_metadata(false).target(&target).host(&target).opt_level(1).out_dir(folder.path()).pic(true);
    build.include(here.join("../../../nixl-sys/include")).include(&here).std("gnu11").warnings(true);
    let path = folder.path().join("libnixl_capi.so");
    let mut command = build.get_compiler().to_command();
    command.args(["mock_capi.c", "transfers.c", "unused.c"].map(|file| here.join(file)));
    let status = command.args(["-shared", "-lpthread", "-ldl", "-o"]).arg(&path).status().expect("a C compiler");
    assert!(status.success(), "the mock compiles");
    let api = Api::load(Some(&path)).expect("the mock loads like the real library");
    // SAFETY: its initialisers do nothing; it is mapped already.
    let library = unsafe { Library::new(&path) }.unwrap();
    Built { library, api, _folder: folder }
}

impl Mock {
    /// With all knobs at 0.
    pub(crate) fn take() -> Self {
        static BUILT: OnceLock<Built> = OnceLock::new();
        static ALONE: Mutex<()> = Mutex::new(());
        let alone = ALONE.lock();
        let mut mock = Self { built: BUILT.get_or_init(build), _alone: alone, stuck: 0 };
        mock.stuck = mock.live();
        for knob in KNOBS {
            mock.set(knob, 0);
        }
        mock
    }

    pub(crate) fn set(&self, knob: Knob, value: i64) {
        // SAFETY: the mock's function of this type.
        let set = unsafe { self.built.library.get::<unsafe extern "C" fn(c_int, c_long)>(b"mock_set") }.unwrap();
        // SAFETY: `knob` is one of the mock's.
        unsafe { set(knob as c_int, value) };
    }

    fn number(&self, name: &[u8]) -> i64 {
        // SAFETY: the mock's functions of this name have this type.
        let get = unsafe { self.built.library.get::<unsafe extern "C" fn() -> c_long>(name) }.unwrap();
        // SAFETY: reads a number.
        unsafe { get() }
    }

    /// Handles that are alive.
    pub(crate) fn live(&self) -> i64 {
        self.number(b"mock_live")
    }

    /// Things done to the mock that must never be done.
    pub(crate) fn misuses(&self) -> i64 {
        self.number(b"mock_misuses")
    }

    /// Agents made so far on a thread with a current CUDA context.
    pub(crate) fn with_context(&self) -> i64 {
        self.number(b"mock_with_context")
    }

    pub(crate) fn agent(&self, name: &str, change: impl FnOnce(&mut AgentConfig)) -> Arc<Agent> {
        let mut config = AgentConfig::pull(AgentName::new(name).unwrap());
        change(&mut config);
        Agent::start(self.built.api, config).unwrap()
    }

    /// An agent that serves four blocks of `7`s, and one that has loaded it and has four blocks of `0`s.
    pub(crate) fn pair(&self) -> Pair {
        let memory = || Memory::host(4 * BLOCK, HugePages::Off).unwrap();
        self.pair_of(memory(), memory())
    }

    /// The same over memory of other kinds.
    pub(crate) fn pair_of(&self, there: Memory, here: Memory) -> Pair {
        let source = self.agent("p", |_| {});
        let there = source.register(there).wait().unwrap();
        there.fill(0..4 * BLOCK, 7).unwrap();
        let reader = self.agent("d", |_| {});
        let peer = reader.load_peer(source.local_metadata().wait().unwrap()).wait().unwrap();
        let here = reader.register(here).wait().unwrap();
        Pair { source, there, reader, peer, here }
    }

    /// All handles are gone and nothing was misused.
    pub(crate) fn is_clean(&self) {
        wait_until("every handle is gone", || self.live() == self.stuck);
        assert_eq!(self.misuses(), 0, "misuses");
    }
}

pub(crate) struct Pair {
    pub(crate) source: Arc<Agent>,
    pub(crate) there: Region,
    pub(crate) reader: Arc<Agent>,
    pub(crate) peer: AgentName,
    pub(crate) here: Region,
}

impl Pair {
    /// Reads blocks 0 and 1 into blocks 2 and 3.
    pub(crate) fn read(&self) -> Read {
        let base = self.there.base();
        let ranges = std::iter::once(base..base + 4 * BLOCK).collect();
        let there = self.there.memory();
        let memory = PeerMemory { kind: there.kind(), device: there.device_id(), ranges };
        Read {
            peer: self.peer.clone(),
            local: LocalDescs::new(&self.here, [(2 * BLOCK, BLOCK), (3 * BLOCK, BLOCK)]).unwrap(),
            remote: RemoteDescs::new(&memory, [(base, BLOCK), (base + BLOCK, BLOCK)]).unwrap(),
            notify: None,
        }
    }

    /// The last byte of each block here.
    pub(crate) fn landed(&self) -> [u8; 4] {
        [1, 2, 3, 4].map(|block| {
            let mut last = [0];
            self.here.read_at(block * BLOCK - 1, &mut last).unwrap();
            last[0]
        })
    }
}

pub(crate) fn wait_until(what: &str, mut there: impl FnMut() -> bool) {
    let start = Instant::now();
    while !there() {
        assert!(start.elapsed() < DEADLINE, "{what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}
