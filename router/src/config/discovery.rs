//! How pods are found that no flag names.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use ::discovery::kubernetes::Wanted;
use ::discovery::kubernetes::api::Api;
use clap::{ArgAction, Args};
use http::Uri;

use super::{ConfigError, Scheme, duration, range};

/// Where Kubernetes puts a pod's account.
const ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// Flags of discovery.
#[derive(Clone, Debug, Args)]
pub struct DiscoveryArgs {
    /// Find pods in Kubernetes by --prefill-selector and --decode-selector, and follow them as they come and go; also beside --prefill and --decode.
    #[arg(long, env = "KVGATE_SERVICE_DISCOVERY", action = ArgAction::SetTrue)]
    pub service_discovery: bool,

    /// Labels of prefill pods, as llm-d.ai/role=prefill; all must fit.
    #[arg(long, env = "KVGATE_PREFILL_SELECTOR", value_name = "KEY=VALUE", value_delimiter = ' ', num_args = 1..)]
    pub prefill_selector: Vec<Label>,

    /// Labels of decode pods, as llm-d.ai/role=decode; all must fit.
    #[arg(long, env = "KVGATE_DECODE_SELECTOR", value_name = "KEY=VALUE", value_delimiter = ' ', num_args = 1..)]
    pub decode_selector: Vec<Label>,

    /// The pods' namespace; the router's own unless given.
    #[arg(long, env = "KVGATE_SERVICE_DISCOVERY_NAMESPACE", value_name = "NAME")]
    pub service_discovery_namespace: Option<String>,

    /// The engines' port in discovered pods.
    #[arg(long, env = "KVGATE_SERVICE_DISCOVERY_PORT", value_name = "PORT", default_value_t = 8000)]
    pub service_discovery_port: u16,

    /// The engines' port in discovered decode pods, where it is another one.
    #[arg(long, env = "KVGATE_DECODE_DISCOVERY_PORT", value_name = "PORT")]
    pub decode_discovery_port: Option<u16>,

    /// How the engines of discovered pods are reached, and of those that are known by --prefill-allow.
    #[arg(long, env = "KVGATE_ENGINE_DISCOVERY_SCHEME", value_enum, default_value_t = Scheme::Http)]
    pub engine_discovery_scheme: Scheme,

    /// The sidecars' port in discovered pods, and in those that are known by --prefill-allow.
    #[arg(long, env = "KVGATE_SIDECAR_DISCOVERY_PORT", value_name = "PORT", default_value_t = 7700)]
    pub sidecar_discovery_port: u16,

    /// Kubernetes' API, as http://127.0.0.1:8001 for kubectl proxy; the cluster's own, with the pod's account, unless given.
    #[arg(long, env = "KVGATE_KUBERNETES_API", value_name = "URL")]
    pub kubernetes_api: Option<Uri>,

    /// Take the hosts of --prefill and --decode for names with an address for each pod (headless Services), and look them up this often, as 5s.
    #[arg(long, env = "KVGATE_DNS_DISCOVERY", value_name = "DURATION", value_parser = duration)]
    pub dns_discovery: Option<Duration>,
}

/// One label of a selector.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Label(String);

/// Why a label cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a label is KEY=VALUE, as llm-d.ai/role=decode")]
pub struct LabelError;

impl FromStr for Label {
    type Err = LabelError;

    fn from_str(text: &str) -> Result<Self, LabelError> {
        let part =
            |text: &str, more: &[u8]| text.bytes().all(|byte| byte.is_ascii_alphanumeric() || more.contains(&byte));
        match text.split_once('=') {
            Some((key, value)) if !key.is_empty() && part(key, b"-_./") && part(value, b"-_.") => {
                Ok(Self(text.to_owned()))
            }
            Some(_) | None => Err(LabelError),
        }
    }
}

impl std::fmt::Display for Label {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// [`DiscoveryArgs`], checked.
#[derive(Clone, Debug)]
pub enum Discovery {
    /// The flags name all pods.
    Off,
    /// Names of the flags are looked up.
    Dns {
        /// How often.
        every: Duration,
    },
    /// Pods by their labels.
    Kubernetes(Box<Selected>),
}

/// Which pods, and their ports.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "each field is the flag of the same name")]
pub struct Selected {
    pub api: Api,
    pub prefill: Wanted,
    /// `None` in a decode pod, which needs to know of no other.
    pub decode: Option<Wanted>,
    pub prefill_port: u16,
    pub decode_port: u16,
    pub engine_scheme: Scheme,
    pub sidecar_port: u16,
}

impl Discovery {
    /// Whether a router without a pod may start.
    pub(super) fn finds(&self) -> bool {
        match self {
            Self::Kubernetes(_) => true,
            Self::Off | Self::Dns { .. } => false,
        }
    }
}

impl DiscoveryArgs {
    pub(super) fn check(&self, pod_local: bool) -> Result<Discovery, ConfigError> {
        let selected = !self.prefill_selector.is_empty() || !self.decode_selector.is_empty();
        range(
            self.service_discovery || !selected,
            "--prefill-selector and --decode-selector",
            "given with --service-discovery only",
        )?;
        if let Some(every) = self.dns_discovery {
            range(!self.service_discovery, "--dns-discovery", "given without --service-discovery")?;
            range(every >= Duration::from_millis(100), "--dns-discovery", "at least 100ms")?;
            return Ok(Discovery::Dns { every });
        }
        if !self.service_discovery {
            return Ok(Discovery::Off);
        }
        range(!self.prefill_selector.is_empty(), "--prefill-selector", "given with --service-discovery")?;
        let (decode, wanted) = match pod_local {
            true => (self.decode_selector.is_empty(), "left out with --pod-local: decode is this pod"),
            false => (!self.decode_selector.is_empty(), "given with --service-discovery"),
        };
        range(decode, "--decode-selector", wanted)?;
        let namespace = self.namespace()?;
        let wanted = |labels: &[Label]| {
            let labels: Vec<&str> = labels.iter().map(|Label(text)| text.as_str()).collect();
            Wanted { namespace: namespace.clone(), selector: labels.join(",") }
        };
        let prefill_port = self.service_discovery_port;
        Ok(Discovery::Kubernetes(Box::new(Selected {
            api: self.api()?,
            prefill: wanted(&self.prefill_selector),
            decode: (!pod_local).then(|| wanted(&self.decode_selector)),
            prefill_port,
            decode_port: self.decode_discovery_port.unwrap_or(prefill_port),
            engine_scheme: self.engine_discovery_scheme,
            sidecar_port: self.sidecar_discovery_port,
        })))
    }

    fn namespace(&self) -> Result<String, ConfigError> {
        let named = self.service_discovery_namespace.clone();
        let own = || std::fs::read_to_string(Path::new(ACCOUNT).join("namespace")).ok();
        let namespace = named.or_else(own).map(|name| name.trim().to_owned());
        let namespace = namespace.unwrap_or_else(|| "default".to_owned());
        let label = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        let good = (1..=63).contains(&namespace.len()) && namespace.bytes().all(label);
        range(good, "--service-discovery-namespace", "the name of a namespace")?;
        Ok(namespace)
    }

    fn api(&self) -> Result<Api, ConfigError> {
        let file = |name: &str| Some(PathBuf::from(ACCOUNT).join(name)).filter(|path| path.exists());
        if let Some(base) = &self.kubernetes_api {
            let known = matches!(base.scheme_str(), Some("http" | "https")) && base.host().is_some();
            range(known, "--kubernetes-api", "an http or https URL")?;
            // The account's token is for the cluster's own API, never for whatever listens without TLS.
            let secure = base.scheme_str() == Some("https");
            let own = |name| file(name).filter(|_| secure);
            let authority = own("ca.crt");
            let wanted = "http://… (kubectl proxy) outside of a cluster: only in a pod there is an authority that vouches for https";
            range(authority.is_some() || !secure, "--kubernetes-api", wanted)?;
            return Ok(Api { base: base.clone(), token: own("token"), authority });
        }
        let base = in_cluster().ok_or(ConfigError::Range {
            flag: "--kubernetes-api",
            wanted: "given outside of a cluster: KUBERNETES_SERVICE_HOST is not set",
        })?;
        Ok(Api { base, token: file("token"), authority: file("ca.crt") })
    }
}

/// The cluster's own API, as Kubernetes tells every container.
#[expect(clippy::disallowed_methods, reason = "configuration is read here, once")]
fn in_cluster() -> Option<Uri> {
    let host = std::env::var("KUBERNETES_SERVICE_HOST").ok()?;
    let port = std::env::var("KUBERNETES_SERVICE_PORT").unwrap_or_else(|_| "443".to_owned());
    let host = match host.parse::<IpAddr>() {
        Ok(IpAddr::V6(address)) => format!("[{address}]"),
        Ok(IpAddr::V4(_)) | Err(_) => host,
    };
    format!("https://{host}:{port}").parse().ok()
}
