//! Which vLLM releases we know. The protocol changes with every connector version, so an unknown one is refused (§9.1).

use std::fmt;

/// One release that was measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Version {
    /// As `GET /version` reports it, without a local suffix.
    pub release: &'static str,
    /// NIXL connector version, a factor of the compatibility hash.
    pub connector: u32,
}

/// The table, oldest first.
pub const SUPPORTED: &[Version] = &[Version { release: "0.32.0", connector: 14 }];

/// A vLLM that we do not know.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct UnsupportedVersion {
    /// What the engine said.
    pub found: String,
}

impl fmt::Display for UnsupportedVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "vLLM {:?} is not supported; supported:", self.found)?;
        for (index, version) in SUPPORTED.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            write!(f, "{comma} {} (connector version {})", version.release, version.connector)?;
        }
        Ok(())
    }
}

/// Looks a version up. A local suffix (`0.32.0+cpu`) names a build of the same release and is ignored: the compatibility
/// hash, which contains the whole string, still tells builds apart.
///
/// # Errors
/// [`UnsupportedVersion`], whose text names the supported ones.
pub fn supported(version: &str) -> Result<&'static Version, UnsupportedVersion> {
    let release = version.split_once('+').map_or(version, |(release, _)| release);
    let known = SUPPORTED.iter().find(|known| known.release == release);
    known.ok_or_else(|| UnsupportedVersion { found: version.chars().take(64).collect() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_measured_releases_are_known() {
        assert_eq!(supported("0.32.0").unwrap().connector, 14);
        assert_eq!(supported("0.32.0+cpu").unwrap().connector, 14);
        for version in ["0.32.1", "0.31.0", "0.32.0rc1", "v0.32.0", "", "dev"] {
            assert!(supported(version).is_err(), "{version}");
        }
        let text = supported("0.99").unwrap_err().to_string();
        assert_eq!(text, "vLLM \"0.99\" is not supported; supported: 0.32.0 (connector version 14)");
    }
}
