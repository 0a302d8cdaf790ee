//! Stamps the binary with its git commit, so that a log or a `/version` answer says what is running.

use std::process::Command;

fn main() {
    // An image's build and a release's tarball have no repository around them: they say it.
    #[expect(clippy::disallowed_methods, reason = "a build script's configuration is its environment")]
    let told = std::env::var("KVGATE_GIT_SHA").ok().filter(|sha| !sha.is_empty());
    let sha = told.or_else(|| {
        let output = Command::new("git").args(["rev-parse", "--short=12", "HEAD"]).output().ok()?;
        output.status.success().then(|| String::from_utf8(output.stdout).ok()).flatten()
    });
    println!("cargo::rustc-env=KVGATE_GIT_SHA={}", sha.as_deref().map_or("unknown", str::trim));
    println!("cargo::rerun-if-env-changed=KVGATE_GIT_SHA");
    println!("cargo::rerun-if-changed=.git/HEAD");
    println!("cargo::rerun-if-changed=.git/logs/HEAD");
    println!("cargo::rerun-if-changed=build.rs");
}
