//! Stamps the binary with its git commit, so that a log or a `/version` answer says what is running.

use std::process::Command;

fn main() {
    // An image's build and a release's tarball have no repository around them: they say it.
    let sha = told("KVGATE_GIT_SHA").or_else(|| {
        let output = Command::new("git").args(["rev-parse", "--short=12", "HEAD"]).output().ok()?;
        output.status.success().then(|| String::from_utf8(output.stdout).ok()).flatten()
    });
    println!("cargo::rustc-env=KVGATE_GIT_SHA={}", sha.as_deref().map_or("unknown", str::trim));
    println!("cargo::rerun-if-env-changed=KVGATE_GIT_SHA");
    println!("cargo::rerun-if-changed=.git/HEAD");
    println!("cargo::rerun-if-changed=.git/logs/HEAD");
    println!("cargo::rerun-if-changed=build.rs");
    // What cargo tells every build script.
    for (ours, cargos) in [("KVGATE_TARGET", "TARGET"), ("KVGATE_PROFILE", "PROFILE")] {
        println!("cargo::rustc-env={ours}={}", told(cargos).unwrap_or_default());
    }
    let rustc = told("RUSTC").unwrap_or_else(|| "rustc".to_owned());
    let version = Command::new(rustc).arg("--version").output().ok();
    let version = version.and_then(|output| String::from_utf8(output.stdout).ok()).unwrap_or_default();
    println!("cargo::rustc-env=KVGATE_RUSTC={}", version.split(" (").next().unwrap_or_default().trim());
}

fn told(name: &str) -> Option<String> {
    #[expect(clippy::disallowed_methods, reason = "a build script's configuration is its environment")]
    let value = std::env::var(name);
    value.ok().filter(|value| !value.is_empty())
}
