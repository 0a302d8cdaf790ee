//! Where traces go: nowhere, or to the OTLP collector that is configured. The standard `OTEL_…` variables are understood too.

use telemetry::trace::Spans;

/// Tracing flags, the same for every subcommand that serves.
#[derive(Debug, clap::Args)]
#[group(skip)]
pub(crate) struct Args {
    /// Export traces to this OTLP collector over HTTP, as in http://collector:4318; off without one
    #[arg(long, env = "KVGATE_OTLP_ENDPOINT", global = true, value_name = "URL")]
    otlp_endpoint: Option<String>,
    /// Of the requests that come without a trace, the share to trace, 0 to 1
    #[arg(long, env = "KVGATE_OTLP_SAMPLE_RATIO", default_value_t = 1.0, global = true, value_name = "RATIO")]
    otlp_sample_ratio: f64,
    /// The whole address of the collector's traces, as OpenTelemetry names it.
    #[arg(long, env = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", hide = true, global = true)]
    otel_traces_endpoint: Option<String>,
    /// The collector, as OpenTelemetry names it.
    #[arg(long, env = "OTEL_EXPORTER_OTLP_ENDPOINT", hide = true, global = true)]
    otel_endpoint: Option<String>,
    /// Headers for the collector: `name=value,…`, percent-encoded.
    #[arg(long, env = "OTEL_EXPORTER_OTLP_HEADERS", hide = true, hide_env_values = true, global = true)]
    otel_headers: Option<String>,
    /// What this process is called in traces.
    #[arg(long, env = "OTEL_SERVICE_NAME", hide = true, global = true)]
    otel_service_name: Option<String>,
    /// Turns traces off whatever else is said.
    #[arg(long, env = "OTEL_SDK_DISABLED", hide = true, global = true)]
    otel_sdk_disabled: Option<String>,
}

/// Why traces cannot be exported as configured.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TracesError {
    /// The address cannot be used.
    #[error(
        "--otlp-endpoint {0:?} is not http://HOST:PORT (https is not spoken: let a collector beside the process do that)"
    )]
    Endpoint(String),
    /// The share cannot be used.
    #[error("--otlp-sample-ratio {0} is not between 0 and 1")]
    Ratio(f64),
    /// The headers cannot be used.
    #[cfg(feature = "otlp")]
    #[error("OTEL_EXPORTER_OTLP_HEADERS is not NAME=VALUE,…")]
    Headers,
    /// This binary has no exporter.
    #[cfg(not(feature = "otlp"))]
    #[error("an OTLP endpoint is configured, but this binary was built without the feature otlp")]
    NotBuilt,
}

/// What ends with the process.
#[derive(Debug, Default)]
pub(crate) struct Exporter {
    #[cfg(feature = "otlp")]
    running: Option<telemetry::otlp::Exporter>,
}

impl Exporter {
    /// Sends what is left, within a deadline.
    pub(crate) async fn finish(self) {
        #[cfg(feature = "otlp")]
        if let Some(running) = self.running {
            running.finish().await;
        }
    }
}

impl Args {
    fn is_off(&self) -> bool {
        self.otel_sdk_disabled.as_deref().is_some_and(|word| word.eq_ignore_ascii_case("true"))
    }

    /// The whole address, if there is one: ours, then the standard's for traces, then the standard's for all signals.
    fn endpoint(&self) -> Result<Option<http::Uri>, TracesError> {
        let said = |text: &Option<String>| text.clone().filter(|text| !text.trim().is_empty());
        let (text, whole) =
            match (said(&self.otlp_endpoint), said(&self.otel_traces_endpoint), said(&self.otel_endpoint)) {
                (Some(ours), _, _) => (ours, false),
                (None, Some(traces), _) => (traces, true),
                (None, None, Some(base)) => (base, false),
                (None, None, None) => return Ok(None),
            };
        let base = text.trim().trim_end_matches('/');
        let address = if whole || base.ends_with("/v1/traces") { base.to_owned() } else { format!("{base}/v1/traces") };
        let uri: http::Uri = address.parse().map_err(|_| TracesError::Endpoint(text.clone()))?;
        if uri.scheme_str() == Some("http") && uri.host().is_some_and(|host| !host.is_empty()) {
            return Ok(Some(uri));
        }
        Err(TracesError::Endpoint(text))
    }

    fn ratio(&self) -> Result<f64, TracesError> {
        let ratio = self.otlp_sample_ratio;
        if (0.0..=1.0).contains(&ratio) { Ok(ratio) } else { Err(TracesError::Ratio(ratio)) }
    }

    /// Starts exporting within a tokio runtime, if a collector is configured.
    #[cfg(feature = "otlp")]
    pub(crate) fn start(&self, name: &str) -> Result<(Spans, Exporter), TracesError> {
        let share = self.ratio()?;
        let (Some(endpoint), false) = (self.endpoint()?, self.is_off()) else {
            return Ok((Spans::default(), Exporter::default()));
        };
        let settings = telemetry::otlp::Settings {
            endpoint,
            headers: self.headers()?,
            service: telemetry::otlp::Service {
                name: self.otel_service_name.clone().unwrap_or_else(|| name.to_owned()),
                version: env!("CARGO_PKG_VERSION").to_owned(),
                instance: format!("{:016x}", fastrand::u64(..)),
            },
            share,
            timeout: std::time::Duration::from_secs(5),
        };
        let (spans, running) = telemetry::otlp::Exporter::start(settings);
        Ok((spans, Exporter { running: Some(running) }))
    }

    /// Without the exporter traces stay off, and whoever asks for them is told.
    #[cfg(not(feature = "otlp"))]
    pub(crate) fn start(&self, _name: &str) -> Result<(Spans, Exporter), TracesError> {
        self.ratio()?;
        match self.endpoint()? {
            Some(_) if !self.is_off() => Err(TracesError::NotBuilt),
            Some(_) | None => Ok((Spans::default(), Exporter::default())),
        }
    }

    #[cfg(feature = "otlp")]
    fn headers(&self) -> Result<http::HeaderMap, TracesError> {
        let pairs = self.otel_headers.as_deref().unwrap_or_default().split(',').filter(|pair| !pair.trim().is_empty());
        let header = |pair: &str| {
            let (name, value) = pair.split_once('=')?;
            let value = percent_encoding::percent_decode_str(value.trim()).decode_utf8().ok()?;
            Some((name.trim().parse::<http::HeaderName>().ok()?, value.parse::<http::HeaderValue>().ok()?))
        };
        pairs.map(header).collect::<Option<_>>().ok_or(TracesError::Headers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser as _;

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        traces: Args,
    }

    fn endpoint(args: &str) -> Result<Option<String>, TracesError> {
        let line = Line::parse_from(std::iter::once("kvgate").chain(args.split_whitespace()));
        Ok(line.traces.endpoint()?.map(|uri| uri.to_string()))
    }

    #[test]
    fn ours_comes_before_the_standard_s_and_traces_before_all() {
        for (args, wanted) in [
            ("", None),
            ("--otlp-endpoint http://c:4318", Some("http://c:4318/v1/traces")),
            ("--otlp-endpoint http://c:4318/", Some("http://c:4318/v1/traces")),
            ("--otlp-endpoint http://c/v1/traces", Some("http://c/v1/traces")),
            ("--otel-endpoint http://c:1/base", Some("http://c:1/base/v1/traces")),
            ("--otel-traces-endpoint http://c:2/as/is --otel-endpoint http://c:1", Some("http://c:2/as/is")),
            ("--otlp-endpoint http://o:1 --otel-traces-endpoint http://c:2/t", Some("http://o:1/v1/traces")),
        ] {
            assert_eq!(endpoint(args).unwrap().as_deref(), wanted, "{args}");
        }
        for bad in ["https://c:4318", "c:4318", "grpc://c:4317", "http://"] {
            assert!(endpoint(&format!("--otlp-endpoint {bad}")).is_err(), "{bad}");
        }
    }
}
