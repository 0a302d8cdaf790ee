//! `/debug` in a real browser: what an operator sees, with the mouse and with the keyboard, when all is well, when a peer is slow, when
//! the sidecar has gone.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Child, Stdio};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::browser::{Browser, require_browser};
use crate::process::{Running, free_ports, kvgate, nixl_is_here, request, scratch_file, wait_for};

/// A request id that would be an element if it were ever taken for markup.
const MARKUP: &str = "<img/src=x/onerror=document.title=1>";

const STAGES: [&str; 7] = ["queued", "handshake", "post", "wire", "verify", "landed_idle", "collect"];

/// A demo that goes on after its requests; dropped = ended, with what it started.
struct Demo {
    child: Child,
    folder: TempDir,
}

impl Demo {
    fn start(args: &str) -> Self {
        let folder = TempDir::new().expect("a temporary folder");
        let mut command = kvgate("demo --keep --out");
        command.arg(folder.path()).args(args.split_whitespace()).stdout(Stdio::null()).stderr(Stdio::null());
        let demo = Self { child: command.spawn().expect("the demo starts"), folder };
        wait_for("the demo's report", || demo.json("report.json"));
        demo
    }

    fn json(&self, name: &str) -> Option<Value> {
        serde_json::from_slice(&std::fs::read(self.folder.path().join(name)).ok()?).ok()
    }

    fn port(&self, name: &str) -> u16 {
        let ports = self.json(&format!("{name}.ports.json")).expect("its ports");
        u16::try_from(ports["http"].as_u64().expect("a port")).expect("a port")
    }

    fn end(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::INT).expect("it runs");
        wait_for("the demo's end", || self.child.try_wait().expect("it can be asked"));
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn row(label: &str) -> String {
    format!(
        "[...document.querySelectorAll('#transfers .row')].find((row) => row.querySelector('.request').textContent === {})",
        json!(label)
    )
}

#[test]
fn an_operator_finds_the_slow_peer_and_opens_a_transfer() {
    if !nixl_is_here() {
        return;
    }
    let Some(mut browser) = require_browser() else { return };
    let mut demo = Demo::start("--fault slow-wire");
    let origin = format!("http://127.0.0.1:{}", demo.port("decode-sidecar"));
    browser.resize(1280, 1000);
    browser.scheme("dark");
    browser.open(&format!("{origin}/debug"));
    shows_what_there_is(&mut browser, &demo);
    opens_with_mouse_and_keyboard(&mut browser);
    filters(&mut browser, &origin);
    takes_nothing_for_markup(&mut browser, &demo);
    fits_a_phone(&mut browser);
    let complaints = browser.complaints();
    assert!(complaints.is_empty(), "{complaints:#?}");
    asks_its_own_host_and_not_too_often(&browser, &origin);
    rests_while_hidden(&mut browser);

    browser.resize(1280, 1000);
    demo.end();
    browser.until("document.querySelector('#connection').textContent === 'connection lost'");
    browser.until("/Connection lost: .*last update \\d+ s ago/.test(document.querySelector('#lost').textContent)");
    assert_eq!(browser.js("document.querySelectorAll('#ranks [data-rank]').length"), 2, "what was known stays");
    browser.picture("debug-page-lost.png");
}

fn shows_what_there_is(browser: &mut Browser, demo: &Demo) {
    browser.until("document.querySelector('#connection').textContent === 'live'");
    browser.until("document.querySelectorAll('#ranks [data-rank]').length === 2");
    browser.until("[...document.querySelectorAll('#ranks .pill')].every((pill) => pill.textContent === '✓ ready')");

    let report = demo.json("report.json").expect("the report");
    let notes: Vec<_> = report["notes"].as_array().expect("notes").iter().filter_map(Value::as_str).collect();
    let slow = notes.iter().find_map(|note| note.strip_prefix("control slow-wire: the slow peer is ")).expect("a name");
    browser.until("document.querySelectorAll('#causes li').length > 0");
    let cause = browser.js("document.querySelector('#causes li').textContent");
    let cause = cause.as_str().expect("text");
    assert!(cause.starts_with("wire: ") && cause.contains(slow), "{cause} must name {slow}");
    let words = "[...document.querySelectorAll('#transfers .why')].some((why) => why.textContent.startsWith('wire: '))";
    browser.until(words);
    browser.until("document.querySelectorAll('#latency [data-key]').length >= 6");

    let body = r#"{"model":"sim-llama-3.1-8b","prompt":"seen by the page","max_tokens":4}"#;
    let (status, answer) = request(demo.port("router"), "POST", "/v1/completions", body);
    assert_eq!(status, 200, "{answer:#}");
    browser.until("document.querySelector('#transfers .row .when').textContent.match(/^[0-5] s ago$/) !== null");
    browser.picture("debug-page.png");
    browser.scheme("light");
    browser.picture("debug-page-light.png");
}

fn opens_with_mouse_and_keyboard(browser: &mut Browser) {
    // A row that stays the first while nothing new comes.
    browser.click("#transfers .row");
    browser.until("document.querySelector('#detail').open");
    let stages = "[...document.querySelectorAll('#detail .stages .stage-name')].map((name) => name.textContent)";
    browser.until(&format!("{stages}.length === 7"));
    assert_eq!(browser.js(stages), json!(STAGES));
    let title = browser.js("document.querySelector('#detail-title').textContent");
    assert_eq!(title, browser.js("document.querySelector('#transfers .row .request').textContent"));
    let trace = "fetch(document.querySelector('#detail a[download]').href).then((answer) => answer.json())";
    let trace = browser.js(&format!("{trace}.then((trace) => trace.traceEvents.map((event) => event.name))"));
    assert!(STAGES.iter().all(|stage| trace.as_array().expect("names").contains(&json!(stage))), "{trace}");
    assert!(browser.js("location.hash").as_str().is_some_and(|hash| hash.contains("transfer=")), "a link to it");
    browser.press("Escape");
    browser.until("!document.querySelector('#detail').open && !location.hash.includes('transfer=')");

    // From the top of the page to a row with nothing but Tab, each stop visible.
    browser.js("document.activeElement.blur()");
    for _ in 0..200 {
        browser.press("Tab");
        let seen = browser.js("getComputedStyle(document.activeElement).outlineStyle");
        assert_ne!(seen, "none", "{}", browser.js("document.activeElement.outerHTML"));
        if browser.js("document.activeElement.matches('#transfers .row')") == true {
            break;
        }
    }
    let focused = browser.js("document.activeElement.querySelector('.request').textContent");
    browser.press("Enter");
    browser.until("document.querySelector('#detail').open");
    browser.until(&format!("{stages}.length === 7"));
    assert_eq!(browser.js("document.querySelector('#detail-title').textContent"), focused);
    browser.press("Tab");
    browser.press("Escape");
    browser.until("!document.querySelector('#detail').open");
    assert_eq!(
        browser.js("document.activeElement.querySelector('.request').textContent"),
        focused,
        "back where it was"
    );
    let unnamed = "[...document.querySelectorAll('button, select, input')].filter((control) => \
                   control.matches('button') ? !control.textContent.trim() : !control.labels.length).map((control) => control.outerHTML)";
    assert_eq!(browser.js(unnamed), json!([]), "every control has a name");
}

/// Picks an entry of a menu as a person's choice arrives.
fn pick(browser: &mut Browser, name: &str, value: &str) {
    browser.js(&format!(
        "(() => {{ const menu = document.querySelector('select[name={name}]'); menu.value = {}; \
         menu.dispatchEvent(new Event('input', {{ bubbles: true }})); }})()",
        json!(value)
    ));
}

fn filters(browser: &mut Browser, origin: &str) {
    let all = |what: &str| {
        format!(
            "(() => {{ const rows = [...document.querySelectorAll('#transfers .row .where')].map((where) => where.textContent); \
             return rows.length > 0 && rows.every((where) => {what}); }})()"
        )
    };
    pick(browser, "rank", "1");
    browser.until(&all("where.startsWith('rank 1 ')"));
    assert_eq!(browser.js("location.hash"), "#rank=1");
    browser.open(&format!("{origin}/debug#rank=0&window=120s"));
    browser.until(&all("where.startsWith('rank 0 ')"));
    assert_eq!(browser.js("document.querySelector('select[name=rank]').value"), "0");
    assert_eq!(browser.js("document.querySelector('select[name=window]').value"), "120s");
    browser.click("#filter button[type=reset]");
    browser.until(
        "[...document.querySelectorAll('#transfers .where')].some((where) => where.textContent.startsWith('rank 1 '))",
    );

    let peer = browser.js("document.querySelector('select[name=peer]').options[1].value");
    let address = browser.js("document.querySelector('select[name=peer]').options[1].textContent.split(' ')[0]");
    pick(browser, "peer", peer.as_str().expect("an engine"));
    browser.until(&all(&format!("where.endsWith({address})")));
    assert!(browser.js("location.hash").as_str().is_some_and(|hash| hash.contains("peer=")));
    pick(browser, "outcome", "failed");
    browser.until("document.querySelectorAll('#transfers .row').length === 0");
    browser.until("document.querySelector('#shown').textContent === 'No recent transfer fits.'");
    browser.click("#filter button[type=reset]");
    browser.until("document.querySelectorAll('#transfers .row').length > 0");
}

/// A transfer that nobody holds, under a name that is markup.
fn takes_nothing_for_markup(browser: &mut Browser, demo: &Demo) {
    let params = json!({
        "do_remote_prefill": true, "do_remote_decode": false, "remote_block_ids": [[1]], "remote_engine_id": MARKUP,
        "remote_request_id": MARKUP, "remote_host": "127.0.0.1", "remote_port": free_ports(1), "tp_size": 1, "remote_num_tokens": 16,
    });
    let start = json!({
        "attempt_id": "page-1", "request_id": MARKUP, "dp_rank": 0, "deadline_ms": 2000, "prefill_done_age_ms": 0,
        "kv_transfer_params": params,
    });
    let (status, answer) = request(demo.port("decode-sidecar"), "POST", "/v1/transfers", &start.to_string());
    assert_eq!(status, 502, "{answer:#}");
    let found = row(MARKUP);
    browser.until(&format!("{found} !== undefined"));
    let state = browser.js(&format!("{found}.querySelector('.state').textContent"));
    assert_eq!(state, "failed: peer_unreachable");
    browser.js(&format!("{found}.click()"));
    browser.until(&format!("document.querySelector('#detail-title').textContent === {}", json!(MARKUP)));
    browser.until("document.querySelector('#detail').textContent.includes('peer_unreachable: ')");
    browser.press("Escape");
    browser.until("!document.querySelector('#detail').open");
    assert_eq!(browser.js("document.images.length"), 0);
    assert!(browser.js("document.title").as_str().is_some_and(|title| title.starts_with("kvgate ")));
    pick(browser, "outcome", "failed");
    browser.until("document.querySelectorAll('#transfers .row').length === 1");
    browser.click("#filter button[type=reset]");
}

fn fits_a_phone(browser: &mut Browser) {
    browser.resize(320, 700);
    browser.until("innerWidth === 320");
    assert_eq!(browser.js("document.documentElement.scrollWidth"), 320);
    browser.picture("debug-page-320.png");
    browser.click("#transfers .row");
    browser.until("document.querySelector('#detail').open");
    browser.until("document.querySelectorAll('#detail .stages li').length > 0");
    assert_eq!(
        browser.js("[document.documentElement.scrollWidth, document.querySelector('#detail').scrollWidth <= 320]"),
        json!([320, true])
    );
    browser.picture("debug-page-320-detail.png");
    browser.press("Escape");
    browser.until("!document.querySelector('#detail').open");
}

fn asks_its_own_host_and_not_too_often(browser: &Browser, origin: &str) {
    let mut times: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    for sent in browser.happened("Network.requestWillBeSent") {
        let url = sent["request"]["url"].as_str().expect("an address");
        assert!(url.starts_with(origin) || url.starts_with("about:"), "{url} is elsewhere");
        // A kind of question is its path, and whether it asks for the slowest or for stages.
        let path = url.split(['?', '#']).next().unwrap_or_default();
        let kind = format!("{path} {} {}", url.contains("slowest="), url.contains("stage"));
        // A page that was opened anew asks anew.
        if sent["type"] == "Document" {
            times.clear();
        }
        times.entry(kind).or_default().push(sent["timestamp"].as_f64().expect("a time"));
    }
    let of_api = times.iter().filter(|(kind, _)| kind.contains("/v1/") && !kind.contains("/trace"));
    for (kind, times) in of_api {
        for (earlier, later) in times.iter().zip(times.iter().skip(1)) {
            assert!(later - earlier > 0.9, "{kind} is asked again after {} s", later - earlier);
        }
    }
}

/// A hidden tab has no connection to the sidecar; one that is looked at again has.
fn rests_while_hidden(browser: &mut Browser) {
    let hide = |hidden: bool| {
        format!(
            "Object.defineProperty(document, 'hidden', {{ configurable: true, get: () => {hidden} }}); \
             document.dispatchEvent(new Event('visibilitychange'))"
        )
    };
    let streams = |browser: &Browser| {
        let events = browser
            .happened("Network.requestWillBeSent")
            .filter(|sent| sent["request"]["url"].as_str().is_some_and(|url| url.ends_with("/v1/ranks/events")));
        events.map(|sent| sent["requestId"].as_str().unwrap_or_default().to_owned()).collect::<Vec<_>>()
    };
    let last = streams(browser).pop().expect("a stream");
    browser.js(&hide(true));
    wait_for("the end of its stream", || {
        browser.js("0");
        let mut ended = browser.happened("Network.loadingFailed");
        ended.any(|ended| ended["requestId"] == last.as_str() && ended["canceled"] == true).then_some(())
    });
    browser.js(&hide(false));
    wait_for("another stream", || {
        browser.js("0");
        (streams(browser).last() != Some(&last)).then_some(())
    });
    browser.until("document.querySelector('#connection').textContent === 'live'");
}

#[test]
fn a_token_is_asked_for_and_kept_in_the_tab() {
    if !nixl_is_here() {
        return;
    }
    let Some(mut browser) = require_browser() else { return };
    let (_folder, token) = scratch_file("token", b"open-sesame\n");
    let base = free_ports(1);
    let engine = Running::start(&format!(
        "sim --role decode --listen 127.0.0.1:0 --side-channel 127.0.0.1:{base} --num-blocks 8"
    ));
    let sidecar = Running::start(&format!(
        "sidecar --role decode --engine http://127.0.0.1:{} --engine-side-channel 127.0.0.1:{base} --listen 127.0.0.1:0 \
         --side-channel-listen 127.0.0.1:0 --staging-bytes 16MiB --token-file {}",
        engine.http,
        Path::new(&token).display()
    ));
    let page = format!("http://127.0.0.1:{}/debug", sidecar.http);
    browser.open(&page);
    browser.until("!document.querySelector('#login').hidden && document.activeElement.id === 'token'");
    browser.type_text("open-barley");
    browser.press("Enter");
    browser.until("document.querySelector('#login-why').textContent.includes('does not accept')");
    browser.until("!document.querySelector('#login').hidden && document.activeElement.id === 'token'");
    assert_eq!(browser.js("document.querySelectorAll('[data-rank]').length"), 0, "nothing is told without it");
    browser.type_text("open-sesame");
    browser.press("Enter");
    browser.until("document.querySelectorAll('#ranks [data-rank]').length === 1");
    browser.until("document.querySelector('#connection').textContent === 'live'");
    browser.until("document.querySelector('#login').hidden");
    browser.open(&page);
    browser.until("document.querySelectorAll('#ranks [data-rank]').length === 1");
    assert_eq!(browser.js("[sessionStorage.length, localStorage.length]"), json!([1, 0]));
}
