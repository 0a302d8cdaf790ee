//! The real library against the header: its names, where it was found, and what it answers.

use std::collections::BTreeSet;
use std::process::Command;
use std::ptr;

use nixl_sys::bindings::Functions;
use nixl_sys::{Api, LoadError, StatusKind, testing};

#[test]
fn every_function_is_resolved() {
    assert_eq!((Functions::REQUIRED.len(), Functions::OPTIONAL.len()), (96, 8));
    let Some(api) = testing::require_nixl() else { return };
    println!("{:?}", api.origin());
    let newest = api.optional_found();
    assert!(newest == 8 || newest == 0, "{newest} of the 8 functions of 1.5: a version that nobody has described");
}

#[test]
fn the_library_exports_what_the_header_declares() {
    let Some(api) = testing::require_nixl() else { return };
    let Ok(output) = Command::new("nm").args(["-D", "--defined-only"]).arg(&api.origin().path).output() else {
        println!("SKIPPED: no nm");
        return;
    };
    let text = String::from_utf8(output.stdout).unwrap();
    let exported: BTreeSet<&str> =
        text.lines().filter_map(|line| line.split(' ').nth(2)).filter(|name| name.starts_with("nixl_capi_")).collect();
    let mut declared: BTreeSet<&str> = Functions::REQUIRED.iter().copied().collect();
    if api.optional_found() > 0 {
        declared.extend(Functions::OPTIONAL);
    }
    assert_eq!(exported, declared);
}

#[test]
fn the_origin_tells_version_and_plugins() {
    let Some(api) = testing::require_nixl() else { return };
    let origin = api.origin();
    assert!(origin.path.is_absolute() && origin.path.is_file());
    assert!(origin.version.starts_with(|c: char| c.is_ascii_digit()), "{}", origin.version);
    assert!(origin.plugin_dir.join("libplugin_UCX.so").is_file(), "{}", origin.plugin_dir.display());
    assert!(ptr::eq(Api::loaded().unwrap(), api));
}

#[test]
fn a_later_load_answers_the_same_or_refuses() {
    let Some(api) = testing::require_nixl() else { return };
    assert!(ptr::eq(Api::load(None).unwrap(), api));
    assert!(ptr::eq(Api::load(Some(&api.origin().path)).unwrap(), api));
    let other = api.origin().path.with_file_name("libnixl.so");
    match Api::load(Some(&other)) {
        Err(LoadError::Conflict { mapped, wanted }) => assert_eq!((mapped, wanted), (api.origin().path.clone(), other)),
        answer => panic!("{answer:?}"),
    }
}

#[test]
#[expect(unsafe_code, reason = "calls NIXL")]
fn bad_arguments_are_answered_by_a_status() {
    let Some(api) = testing::require_nixl() else { return };
    let mut agent = ptr::null_mut();
    // SAFETY: null arguments are checked by the library.
    let status = unsafe { (api.create_agent)(ptr::null(), &raw mut agent) };
    assert_eq!(status.ok("nixl_capi_create_agent").unwrap_err().kind, StatusKind::InvalidParam);
    // SAFETY: an empty name is refused by the library.
    let status = unsafe { (api.create_agent)(c"".as_ptr(), &raw mut agent) };
    assert_eq!(status.ok("nixl_capi_create_agent").unwrap_err().kind, StatusKind::Backend);
    assert!(agent.is_null());
}
