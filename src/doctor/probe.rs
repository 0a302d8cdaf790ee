//! What is asked in a process of its own, `kvgate doctor --probe …`: NIXL and its plugins may abort, hang or write anything to any stream, and
//! whether one process may read another takes two of them.

use std::io::{Read, Write, stdin, stdout};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use clap::ValueEnum;
use nixl::{Agent, AgentConfig, AgentName, Fabric};
use nixl_sys::ucx::{DeviceKind, ThreadLevel, Ucx};
use nixl_sys::{Api, machine};
use serde::{Deserialize, Serialize};

use super::measure;
use crate::ask::with_causes;

/// Stands before what the parent reads; everything else on the stream is some library's.
pub(super) const MARK: &str = "kvgate-doctor-probe ";
/// Bytes that one process tries to read of another.
const PATTERN: &[u8; 16] = b"kvgate's pattern";
const CLOSE_WITHIN: Duration = Duration::from_secs(5);

/// Which part of the doctor this process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Part {
    /// Loads NIXL and makes an agent.
    Nixl,
    /// Opens every GPU as a sidecar does.
    Gpus,
    /// Has a few bytes and waits until its standard input ends.
    Target,
    /// Reads those bytes.
    Reader,
    /// Reads a peer's probe over NIXL; which one stands on its standard input.
    Transfer,
}

/// What the NIXL probe has learned so far. It is written after every step, so that a crash leaves what came before.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Probed {
    pub(super) library: Option<Library>,
    pub(super) library_error: Option<String>,
    pub(super) plugins: Vec<Plugin>,
    pub(super) plugins_error: Option<String>,
    /// The backend was made.
    pub(super) backend: bool,
    pub(super) backend_error: Option<String>,
    pub(super) ucx: Option<UcxSays>,
    pub(super) ucx_error: Option<String>,
    pub(super) cuda: Option<Cuda>,
    pub(super) cuda_error: Option<String>,
    /// UCX's CUDA modules, where there is a driver.
    pub(super) cuda_modules: Vec<Plugin>,
    /// Every step was taken.
    pub(super) whole: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Library {
    pub(super) path: String,
    pub(super) found_by: String,
    pub(super) version: String,
    pub(super) plugin_folder: String,
    pub(super) mock: bool,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Plugin {
    pub(super) name: String,
    /// The dynamic loader's words.
    pub(super) refused: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct UcxSays {
    pub(super) path: String,
    pub(super) version: String,
    /// It can be used from many threads, as NIXL does.
    pub(super) threads: bool,
    pub(super) transports: Vec<Transport>,
    pub(super) memory: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Transport {
    pub(super) name: String,
    pub(super) device: String,
    /// It reaches other machines.
    pub(super) network: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Cuda {
    pub(super) supports: String,
    pub(super) gpus: Vec<String>,
}

/// Plays its part; `of` is `PID:ADDRESS` for the reader.
pub(super) fn run(part: Part, library: Option<&Path>, of: Option<&str>) -> ExitCode {
    match part {
        Part::Nixl => nixl(library),
        Part::Gpus => gpus(),
        Part::Target => target(),
        Part::Reader => reader(of.unwrap_or_default()),
        Part::Transfer => transfer(library),
    }
    ExitCode::SUCCESS
}

/// One line for the parent. If it is gone, nobody wants to know.
fn tell(value: &impl Serialize) {
    let Ok(text) = serde_json::to_string(value) else { return };
    let mut out = stdout().lock();
    drop(writeln!(out, "\n{MARK}{text}").and_then(|()| out.flush()));
}

fn nixl(library: Option<&Path>) {
    let mut probed = Probed::default();
    // The driver first: it needs no NIXL.
    match machine::cuda_driver() {
        Ok(driver) => {
            let (major, minor) = driver.supports;
            probed.cuda = Some(Cuda { supports: format!("{major}.{minor}"), gpus: driver.devices });
        }
        Err(error) => probed.cuda_error = Some(with_causes(&error)),
    }
    tell(&probed);
    match load(library) {
        Ok(api) => with_library(api, &mut probed),
        Err(error) => probed.library_error = Some(with_causes(&error)),
    }
    probed.whole = true;
    tell(&probed);
}

fn load(library: Option<&Path>) -> Result<&'static Api, nixl_sys::LoadError> {
    let file = library.map(|path| if path.is_dir() { path.join("libnixl_capi.so") } else { path.to_owned() });
    Api::load(file.as_deref())
}

fn transfer(library: Option<&Path>) {
    let mut text = String::new();
    let read = stdin().lock().read_to_string(&mut text);
    let measured = match (read, serde_json::from_str::<measure::Probe>(&text), load(library)) {
        (Ok(_), Ok(probe), Ok(api)) => measure::run(api, &probe),
        (Err(error), ..) => measure::Measured::failed(error.to_string()),
        (_, Err(error), _) => measure::Measured::failed(format!("the peer's answer cannot be used: {error}")),
        (.., Err(error)) => measure::Measured::failed(with_causes(&error)),
    };
    tell(&measured);
}

fn with_library(api: &'static Api, probed: &mut Probed) {
    let origin = api.origin();
    probed.library = Some(Library {
        path: origin.path.display().to_string(),
        found_by: format!("{:?}", origin.source),
        version: origin.version.clone(),
        plugin_folder: origin.plugin_dir.display().to_string(),
        mock: origin.mock,
    });
    tell(probed);
    match make_agent(api) {
        Ok(agent) => {
            probed.backend = true;
            ask_ucx(probed);
            tell(probed);
            // What cannot be closed ends with this process.
            drop(agent.close(CLOSE_WITHIN).wait());
        }
        Err(words) => {
            probed.backend_error = Some(words);
            // UCX is mapped once its plugin was opened, also when it would not start.
            ask_ucx(probed);
        }
    }
    tell(probed);
    try_cuda_modules(probed);
    tell(probed);
    // Last: each of these may do anything when it is opened.
    match machine::try_plugins(&origin.plugin_dir) {
        Ok(tried) => {
            let plugin = |tried: machine::TriedPlugin| Plugin { name: tried.name, refused: tried.refused };
            probed.plugins = tried.into_iter().map(plugin).collect();
        }
        Err(error) => probed.plugins_error = Some(format!("{}: {error}", origin.plugin_dir.display())),
    }
}

fn try_cuda_modules(probed: &mut Probed) {
    let (Some(_), Some(ucx)) = (&probed.cuda, &probed.ucx) else { return };
    let plugin = |tried: machine::TriedPlugin| Plugin { name: tried.name, refused: tried.refused };
    let tried = machine::try_cuda_modules(Path::new(&ucx.path));
    probed.cuda_modules = tried.unwrap_or_default().into_iter().map(plugin).collect();
}

/// What a sidecar would have of the GPUs.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Gpus {
    /// Why there is none.
    pub(super) error: Option<String>,
    /// In order of their numbers.
    pub(super) gpus: Vec<GpuSays>,
}

/// One GPU.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct GpuSays {
    pub(super) name: String,
    /// Why it cannot be used.
    pub(super) error: Option<String>,
    /// Bytes.
    pub(super) free: u64,
    pub(super) total: u64,
    pub(super) dma_buf: bool,
}

fn gpus() {
    let mut found = Gpus::default();
    let count = match cuda::driver() {
        Ok(driver) => driver.devices(),
        Err(error) => {
            found.error = Some(error.to_string());
            0
        }
    };
    for ordinal in 0..count {
        let says =
            of_gpu(ordinal).unwrap_or_else(|error| GpuSays { error: Some(error.to_string()), ..GpuSays::default() });
        found.gpus.push(says);
    }
    tell(&found);
}

fn of_gpu(ordinal: u32) -> Result<GpuSays, cuda::CudaError> {
    let gpu = cuda::Gpu::open(ordinal)?;
    let cuda::Free { free, total } = gpu.memory()?;
    Ok(GpuSays { name: gpu.name().to_owned(), error: None, free, total, dma_buf: gpu.exports_dma_buf()? })
}

fn make_agent(api: &'static Api) -> Result<std::sync::Arc<Agent>, String> {
    let name = AgentName::new(format!("kvgate-doctor-{}", std::process::id())).map_err(|error| error.to_string())?;
    Agent::start(api, AgentConfig::serve(name)).map_err(|error| with_causes(&error))
}

fn ask_ucx(probed: &mut Probed) {
    let says = || -> Result<UcxSays, nixl_sys::ucx::UcxError> {
        let ucx = Ucx::of_nixl()?;
        let transports = ucx.transports()?;
        let transport = |t: nixl_sys::ucx::Transport| Transport {
            network: t.kind == DeviceKind::Network,
            name: t.name,
            device: t.device,
        };
        Ok(UcxSays {
            path: ucx.path().display().to_string(),
            version: ucx.version(),
            threads: ucx.thread_level()? == ThreadLevel::Multi,
            transports: transports.into_iter().map(transport).collect(),
            // With a UCX_TLS that cannot work there is no context either; the rest is still worth telling.
            memory: ucx.memory_types().map(|types| types.names()).unwrap_or_default(),
        })
    };
    match says() {
        Ok(says) => probed.ucx = Some(says),
        Err(error) => probed.ucx_error = Some(with_causes(&error)),
    }
}

/// Where the bytes are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Where {
    pub(super) pid: i32,
    pub(super) address: usize,
}

/// What the reader got.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ReadSays {
    /// The bytes were the right ones.
    pub(super) right: bool,
    pub(super) error: Option<String>,
}

fn target() {
    let bytes = Box::new(*PATTERN);
    // As UCX does for its own processes where Yama lets only a parent trace; a kernel without Yama refuses, and needs nothing.
    rustix::process::set_ptracer(rustix::process::PTracer::Any).unwrap_or_default();
    let Ok(pid) = i32::try_from(std::process::id()) else { return };
    tell(&Where { pid, address: bytes.as_ptr().expose_provenance() });
    // The parent closes the stream when it has seen enough, or by its own end.
    drop(stdin().lock().read_to_end(&mut Vec::new()));
    std::hint::black_box(&bytes);
}

fn reader(of: &str) {
    let parsed = of.split_once(':').and_then(|(pid, address)| Some((pid.parse().ok()?, address.parse().ok()?)));
    let Some((pid, address)) = parsed else { return };
    let mut out = [0_u8; PATTERN.len()];
    let read = machine::read_process(pid, address, &mut out);
    tell(&match read {
        Ok(count) => ReadSays { right: count == out.len() && out == *PATTERN, error: None },
        Err(error) => ReadSays { right: false, error: Some(error.to_string()) },
    });
}
