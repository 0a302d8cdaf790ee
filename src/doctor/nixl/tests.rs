//! Lines from made-up findings.

use super::*;
use crate::doctor::line::Status;
use crate::doctor::probe::{Library, Plugin, Transport, UcxSays};

fn healthy() -> Ended<Probed> {
    let transport =
        |name: &str, device: &str, network| Transport { name: name.to_owned(), device: device.to_owned(), network };
    let plugin =
        |name: &str, refused: Option<&str>| Plugin { name: name.to_owned(), refused: refused.map(str::to_owned) };
    let told = Probed {
        library: Some(Library { version: "1.5.1".to_owned(), ..Library::default() }),
        plugins: vec![plugin("GDS", Some("libcudart.so.12: cannot open")), plugin("UCX", None)],
        backend: true,
        ucx: Some(UcxSays {
            threads: true,
            transports: vec![transport("cma", "memory", false), transport("tcp", "eth0", true)],
            memory: vec!["host".to_owned()],
            ..UcxSays::default()
        }),
        cuda_error: Some("no driver".to_owned()),
        whole: true,
        ..Probed::default()
    };
    Ended { told: Some(told), words: Vec::new(), trouble: None }
}

fn find<'a>(lines: &'a [Line], check: &str) -> &'a Line {
    lines.iter().find(|line| line.check == check).unwrap_or_else(|| panic!("no {check} in {lines:?}"))
}

#[test]
fn a_healthy_machine_has_no_failure_and_names_what_would_not_load() {
    let lines = lines(&healthy(), &Settings::default());
    assert!(lines.iter().all(|line| line.status == Status::Ok), "{lines:#?}");
    let plugins = find(&lines, "nixl-plugins");
    assert!(plugins.says.contains("GDS: libcudart.so.12"), "{plugins:?}");
    assert_eq!(plugins.facts["refused"][0]["dlerror"], "libcudart.so.12: cannot open");
}

#[test]
fn a_crash_leaves_what_was_learned_before_it() {
    let mut ended = healthy();
    let told = ended.told.as_mut().unwrap();
    (told.whole, told.plugins) = (false, Vec::new());
    ended.trouble = Some("ended with signal: 11".to_owned());
    let lines = lines(&ended, &Settings::default());
    assert!(find(&lines, PROBE).says.contains("signal: 11"));
    assert_eq!(find(&lines, "nixl").status, Status::Ok);
}

#[test]
fn without_a_library_the_rest_is_skipped() {
    let told = Probed { library_error: Some("tried: /x".to_owned()), whole: true, ..Probed::default() };
    let lines = lines(&Ended { told: Some(told), words: Vec::new(), trouble: None }, &Settings::default());
    assert_eq!(find(&lines, "nixl").status, Status::Fail);
    assert!(find(&lines, "nixl").says.contains("/x"));
    for skipped in ["nixl-plugins", "nixl-backend", "ucx"] {
        assert_eq!(find(&lines, skipped).status, Status::Skip);
    }
}

#[test]
fn a_wrong_plugin_folder_and_a_refused_backend_say_what_to_do() {
    let mut ended = healthy();
    let told = ended.told.as_mut().unwrap();
    (told.plugins, told.backend) = (Vec::new(), false);
    told.plugins_error = Some("/wrong: No such file or directory".to_owned());
    told.backend_error = Some("set up NIXL backend".to_owned());
    ended.words = vec!["I0000 hello".to_owned(), "E0000 Failed to load plugin".to_owned()];
    let settings = Settings { plugin_dir: Some("/wrong".to_owned()), ..Settings::default() };
    let lines = lines(&ended, &settings);
    assert!(find(&lines, "nixl-plugins").fix.as_ref().unwrap().contains("unset NIXL_PLUGIN_DIR"));
    assert_eq!(find(&lines, "nixl-backend").facts["words"], json!(["E0000 Failed to load plugin"]));
}
