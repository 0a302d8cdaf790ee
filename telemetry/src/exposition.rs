//! A page of metrics in the format that a scraper asks for: OpenMetrics, or Prometheus' text.
//!
//! The figures are written as OpenMetrics; Prometheus' text is made from that. The differences that matter: counters and infos are
//! declared under their samples' names, an info is a gauge, and there are no units and no end mark.

/// The media type of an OpenMetrics page.
pub const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// The media type of a Prometheus text page.
pub const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";

/// A page and its media type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// For `content-type`.
    pub media_type: &'static str,
    /// The page.
    pub text: String,
}

/// The page in the format that an `accept` header prefers. Without one, or where both are as welcome, it is OpenMetrics.
pub fn negotiated(accept: Option<&str>, openmetrics: String) -> Page {
    if accept.is_none_or(prefers_openmetrics) {
        return Page { media_type: OPENMETRICS, text: openmetrics };
    }
    Page { media_type: PROMETHEUS, text: prometheus(&openmetrics) }
}

/// Whether an `accept` header gives OpenMetrics at least the weight of plain text. One that names neither gets OpenMetrics.
fn prefers_openmetrics(accept: &str) -> bool {
    let weight = |wanted: &[&str]| {
        let ranges = accept.split(',').filter_map(|range| {
            let mut parts = range.split(';').map(str::trim);
            let name = parts.next()?.to_ascii_lowercase();
            let weight = parts.find_map(|part| part.strip_prefix("q=")).map_or(1.0, |q| q.parse().unwrap_or(0.0));
            wanted.contains(&name.as_str()).then_some(weight)
        });
        ranges.fold(None, |most: Option<f32>, weight| Some(most.map_or(weight, |most| most.max(weight))))
    };
    let (open, text) = (weight(&["application/openmetrics-text"]), weight(&["text/plain", "text/*"]));
    match (open, text) {
        (Some(open), Some(text)) => open >= text && open > 0.0,
        (Some(open), None) => open > 0.0,
        (None, Some(text)) => text <= 0.0,
        (None, None) => true,
    }
}

fn prometheus(openmetrics: &str) -> String {
    let mut text = String::with_capacity(openmetrics.len());
    // The HELP line comes first, and the type decides under which name it goes.
    let mut help: Option<(&str, &str)> = None;
    for line in openmetrics.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            help = rest.split_once(' ');
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
            let (ending, kind) = match kind {
                "counter" => ("_total", "counter"),
                "info" => ("_info", "gauge"),
                "unknown" => ("", "untyped"),
                other => ("", other),
            };
            if let Some((_, words)) = help.take().filter(|(of, _)| *of == name) {
                text.push_str(&format!("# HELP {name}{ending} {words}\n"));
            }
            text.push_str(&format!("# TYPE {name}{ending} {kind}\n"));
        } else if !line.starts_with('#') {
            text.push_str(line);
            text.push('\n');
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = "# HELP build The build.\n# TYPE build info\nbuild_info{version=\"1\"} 1\n\
        # HELP wait_seconds How long.\n# TYPE wait_seconds histogram\n# UNIT wait_seconds seconds\nwait_seconds_count 0\n\
        # HELP done Ended.\n# TYPE done counter\ndone_total 3\n# EOF\n";

    #[test]
    fn prometheus_text_declares_what_its_samples_are_called() {
        let page = negotiated(Some("text/plain"), PAGE.to_owned());
        assert_eq!(page.media_type, PROMETHEUS);
        assert_eq!(
            page.text,
            "# HELP build_info The build.\n# TYPE build_info gauge\nbuild_info{version=\"1\"} 1\n\
             # HELP wait_seconds How long.\n# TYPE wait_seconds histogram\nwait_seconds_count 0\n\
             # HELP done_total Ended.\n# TYPE done_total counter\ndone_total 3\n"
        );
    }

    #[test]
    fn what_the_scraper_prefers_is_given() {
        let scrape = "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,\
                      text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
        for (accept, open) in [
            (Some(scrape), true),
            (Some("text/plain;version=0.0.4"), false),
            (Some("text/plain;q=0.9, application/openmetrics-text; q=0.3"), false),
            (Some("TEXT/plain"), false),
            (Some("application/openmetrics-text;q=0, text/plain;q=0.1"), false),
            (Some("*/*"), true),
            (Some(""), true),
            (None, true),
        ] {
            let page = negotiated(accept, PAGE.to_owned());
            assert_eq!(page.media_type == OPENMETRICS, open, "{accept:?}");
            assert_eq!(page.text == PAGE, open, "{accept:?}");
        }
    }
}
