//! NIXL, its plugins, UCX and the GPUs, as a process of our own found them.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use super::child::{self, Ended};
use super::line::Line;
use super::probe::Probed;
use super::tls;

/// Loading NIXL takes a second; a machine where it takes a minute is not served by waiting longer.
const PATIENCE: Duration = Duration::from_secs(60);
const PROBE: &str = "nixl-probe";

/// The settings of UCX that can make it useless.
#[derive(Clone, Debug, Default)]
pub(super) struct Settings {
    pub(super) tls: Option<String>,
    pub(super) net_devices: Option<String>,
    pub(super) plugin_dir: Option<String>,
}

impl Settings {
    pub(super) fn of_this_process() -> Self {
        // These are UCX's and NIXL's, not ours: they are only shown, so they are no part of any configuration.
        let set = |name| std::env::var_os(name).map(|value| value.to_string_lossy().into_owned());
        let set = |name| set(name).filter(|value| !value.is_empty());
        Self { tls: set("UCX_TLS"), net_devices: set("UCX_NET_DEVICES"), plugin_dir: set("NIXL_PLUGIN_DIR") }
    }
}

/// Runs the probe.
pub(super) async fn probe(library: Option<&Path>) -> Ended<Probed> {
    let mut args = vec!["--probe".to_owned(), "nixl".to_owned()];
    if let Some(library) = library {
        args.extend(["--nixl-library".to_owned(), library.display().to_string()]);
    }
    match child::command(&args) {
        Ok(mut command) => {
            // NIXL tells why a plugin does not load at this level only.
            if std::env::var_os("NIXL_LOG_LEVEL").is_none() {
                command.env("NIXL_LOG_LEVEL", "INFO");
            }
            child::finish(command, &[], PATIENCE).await
        }
        Err(error) => Ended { told: None, words: Vec::new(), trouble: Some(error.to_string()) },
    }
}

/// All lines about it.
pub(super) fn lines(ended: &Ended<Probed>, settings: &Settings) -> Vec<Line> {
    let nothing = Probed::default();
    let probed = ended.told.as_ref().unwrap_or(&nothing);
    let mut lines = Vec::new();
    if !probed.whole || ended.trouble.is_some() {
        let how = ended.trouble.as_deref().unwrap_or("told too little");
        lines.push(
            Line::fail(
                PROBE,
                format!("the process that tried NIXL {how}: what follows is what it had learned until then"),
                "run `NIXL_LOG_LEVEL=DEBUG kvgate doctor --probe nixl` for its own words",
            )
            .with("words", causes(&ended.words)),
        );
    }
    lines.push(library(probed));
    if probed.library.is_some() {
        lines.push(plugins(probed, settings));
        lines.push(backend(probed, &ended.words));
    } else {
        let why = "there is no NIXL to ask";
        lines.extend([Line::skip("nixl-plugins", why), Line::skip("nixl-backend", why)]);
    }
    lines.push(ucx(probed));
    lines.extend(tls::lines(probed.ucx.as_ref(), settings));
    lines
}

fn library(probed: &Probed) -> Line {
    const CHECK: &str = "nixl";
    const FIX: &str =
        "install NIXL (`pip install nixl-cu13`, or `make setup` in a checkout), or name it: --nixl-library PATH";
    match (&probed.library, &probed.library_error) {
        (Some(library), _) => {
            let says = format!("NIXL {} at {} (found by {})", library.version, library.path, library.found_by);
            let line = if library.mock {
                Line::warn(CHECK, format!("{says} is the tests' stand-in"), FIX)
            } else {
                Line::ok(CHECK, says)
            };
            line.with("version", library.version.as_str()).with("path", library.path.as_str())
        }
        (None, Some(error)) => Line::fail(CHECK, error, FIX),
        (None, None) => Line::fail(CHECK, "NIXL did not get as far as being loaded", FIX),
    }
}

fn plugins(probed: &Probed, settings: &Settings) -> Line {
    const CHECK: &str = "nixl-plugins";
    let folder = probed.library.as_ref().map(|library| library.plugin_folder.clone()).unwrap_or_default();
    let fix = match &settings.plugin_dir {
        Some(set) => format!("unset NIXL_PLUGIN_DIR (it is {set}): NIXL then looks beside its own library"),
        None => "install NIXL again: its plugins belong in the folder `plugins` beside libnixl.so".to_owned(),
    };
    let refused: Vec<_> =
        probed.plugins.iter().filter_map(|plugin| Some((&plugin.name, plugin.refused.as_ref()?))).collect();
    let ucx = probed.plugins.iter().find(|plugin| plugin.name == "UCX");
    let line = match (&probed.plugins_error, ucx.map(|ucx| ucx.refused.as_deref())) {
        (Some(error), _) => Line::fail(CHECK, format!("NIXL's plugin folder cannot be read: {error}"), fix),
        (None, None) => Line::fail(CHECK, format!("there is no UCX plugin in {folder}"), fix),
        (None, Some(Some(error))) => Line::fail(
            CHECK,
            format!("the UCX plugin does not load: {error}"),
            "install what it lacks, for this machine",
        ),
        (None, Some(None)) => {
            let mut says = format!("the UCX plugin loads, from {folder}");
            if !refused.is_empty() {
                says.push_str("; others that kvgate does not use do not:");
                for (name, error) in &refused {
                    says.push_str(&format!("\n{name}: {error}"));
                }
            }
            Line::ok(CHECK, says)
        }
    };
    let loaded = probed.plugins.iter().filter(|plugin| plugin.refused.is_none());
    let loaded: Vec<&str> = loaded.map(|plugin| plugin.name.as_str()).collect();
    let refused: Vec<Value> = refused.iter().map(|(name, error)| json!({ "name": name, "dlerror": error })).collect();
    line.with("folder", folder).with("loaded", loaded).with("refused", refused)
}

fn backend(probed: &Probed, words: &[String]) -> Line {
    const CHECK: &str = "nixl-backend";
    if probed.backend {
        return Line::ok(CHECK, "an agent with the UCX backend starts");
    }
    let error = probed.backend_error.as_deref().unwrap_or("no answer");
    let causes = causes(words);
    let mut says = format!("no agent with the UCX backend: {error}");
    for cause in &causes {
        says.push('\n');
        says.push_str(cause);
    }
    Line::fail(CHECK, says, "see the lines nixl-plugins and ucx-tls; the last words above are NIXL's and UCX's own")
        .with("words", causes)
}

/// What a library wrote that reads like trouble, the last few lines.
pub(super) fn causes(words: &[String]) -> Vec<String> {
    let bad = |line: &&String| {
        let lower = line.to_ascii_lowercase();
        ["error", "fail", "cannot", "no such", "not found", "unsupported", "no active messages"]
            .iter()
            .any(|word| lower.contains(word))
    };
    let bad: Vec<&String> = words.iter().filter(bad).collect();
    bad.iter().skip(bad.len().saturating_sub(5)).map(|line| (*line).clone()).collect()
}

fn ucx(probed: &Probed) -> Line {
    const CHECK: &str = "ucx";
    let Some(ucx) = &probed.ucx else {
        let why = probed.ucx_error.as_deref().unwrap_or("NIXL has not loaded it");
        return Line::skip(CHECK, format!("UCX cannot be asked: {why}"));
    };
    let listed = |network: bool| -> String {
        let these = ucx.transports.iter().filter(|t| t.network == network);
        let names: Vec<String> = these.map(|t| format!("{} on {}", t.name, t.device)).collect();
        if names.is_empty() { "none".to_owned() } else { names.join(", ") }
    };
    let says = format!("UCX {}; between machines: {}; within one: {}", ucx.version, listed(true), listed(false));
    let gpus = probed.cuda.as_ref().is_some_and(|cuda| !cuda.gpus.is_empty());
    let line = if !ucx.threads {
        Line::fail(
            CHECK,
            format!("{says}; built without threads"),
            "use the UCX that comes with NIXL's wheel: NIXL needs --enable-mt",
        )
    } else if gpus && !ucx.memory.iter().any(|kind| kind == "cuda") {
        Line::warn(
            CHECK,
            format!("{says}; it cannot move GPU memory"),
            "use the NIXL wheel for your CUDA (nixl-cu12 or nixl-cu13)",
        )
    } else {
        Line::ok(CHECK, says)
    };
    let transports: Vec<Value> =
        ucx.transports.iter().map(|t| json!({ "name": t.name, "device": t.device, "network": t.network })).collect();
    line.with("version", ucx.version.as_str())
        .with("path", ucx.path.as_str())
        .with("transports", transports)
        .with("memory", ucx.memory.clone())
}

#[cfg(test)]
mod tests;
