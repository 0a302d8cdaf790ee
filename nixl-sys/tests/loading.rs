//! Finding and refusing libraries. Each load happens in a child process (see `probe`).
#![expect(clippy::unwrap_used, clippy::indexing_slicing, clippy::print_stdout, reason = "a test fails by panicking")]

#[path = "support/c.rs"]
mod c;
#[path = "support/fake.rs"]
mod fake;
#[path = "support/probe.rs"]
mod probe_process;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use fake::Fake;
use probe_process::Probe;

/// Not a test of its own: the child's entrance.
#[test]
fn probe() {
    probe_process::child();
}

fn load(path: &Path) -> String {
    Probe { load: vec![path.to_path_buf()], ..Probe::default() }.run().remove(0)
}

fn search(environment: Vec<(&str, PathBuf)>) -> String {
    Probe { load: vec![PathBuf::new()], environment, moved: true, ..Probe::default() }.run().remove(0)
}

#[test]
fn a_missing_file_is_named_with_how_to_install() {
    let answer = load(Path::new("/nonexistent/libnixl_capi.so"));
    assert!(answer.starts_with("NotFound"), "{answer}");
    for word in ["/nonexistent/libnixl_capi.so", "make setup", "pip install nixl-cu13", "NIXL_CAPI_LIBRARY"] {
        assert!(answer.contains(word), "{word} in {answer}");
    }
}

#[test]
fn a_file_that_is_no_library_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("libnixl_capi.so");
    fs::write(&path, "not a library").unwrap();
    let answer = load(&path);
    assert!(answer.starts_with("NotALibrary") && answer.contains(path.to_str().unwrap()), "{answer}");
    let answer = load(folder.path());
    assert!(answer.starts_with("NotALibrary"), "a folder: {answer}");
}

#[test]
fn another_library_is_refused() {
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let libc = maps.lines().filter_map(|line| line.find('/').map(|at| &line[at..])).find(|path| path.contains("/libc"));
    let answer = load(Path::new(libc.unwrap()));
    assert!(answer.starts_with("NotNixl"), "{answer}");
}

#[test]
fn a_library_that_lacks_a_function_is_refused_by_its_name() {
    let folder = tempfile::tempdir().unwrap();
    let Some(path) = fake::install(folder.path(), Fake::Short) else { return };
    let answer = load(&path);
    let last = nixl_sys::bindings::Functions::REQUIRED.last().unwrap();
    assert!(answer.starts_with("MissingSymbol") && answer.contains(last), "{answer}");
}

#[test]
fn a_stub_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let Some(path) = fake::install(folder.path(), Fake::Stub) else { return };
    let answer = load(&path);
    assert!(answer.starts_with("Stub") && answer.contains(path.to_str().unwrap()), "{answer}");
}

#[test]
fn a_symlink_is_followed_before_it_is_opened() {
    let folder = tempfile::tempdir().unwrap();
    let Some(path) = fake::install(&folder.path().join("real"), Fake::Whole) else { return };
    let link = folder.path().join("libnixl_capi.so");
    symlink(&path, &link).unwrap();
    let canonical = path.canonicalize().unwrap();
    let answer = load(&link);
    assert_eq!(answer, format!("ok Explicit 0.9 to 1.4 {}", canonical.display()));
}

#[test]
fn the_environment_is_used_or_refused_but_never_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let Some(path) = fake::install(&folder.path().join("prefix/lib"), Fake::Whole) else { return };
    let answer = search(vec![("NIXL_CAPI_LIBRARY", path)]);
    assert!(answer.starts_with("ok Environment"), "{answer}");
    let answer = search(vec![("NIXL_PREFIX", folder.path().join("prefix"))]);
    assert!(answer.starts_with("ok Environment"), "{answer}");
    let wrong = folder.path().join("wrong.so");
    let answer = search(vec![("NIXL_CAPI_LIBRARY", wrong.clone()), ("NIXL_PREFIX", folder.path().join("prefix"))]);
    assert!(answer.starts_with("NotFound") && answer.contains(wrong.to_str().unwrap()), "{answer}");
}

#[test]
fn an_empty_machine_is_told_every_place() {
    let answer = search(Vec::new());
    if answer.starts_with("ok") {
        println!("SKIPPED: this machine has a NIXL of its own: {answer}");
        return;
    }
    assert!(answer.starts_with("NotFound"), "{answer}");
    for place in ["libnixl_capi.so.0", "/opt/nvidia/nvda_nixl", "make setup"] {
        assert!(answer.contains(place), "{place} in {answer}");
    }
}

#[test]
fn wheels_are_found_in_target_and_in_python() {
    let folder = tempfile::tempdir().unwrap();
    let wheel = |root: &Path| {
        fs::create_dir_all(root.join("nixl_cu13-9.8.7.dist-info")).unwrap();
        fake::install(&root.join(".nixl_cu13.mesonpy.libs"), Fake::Whole)
    };
    let Some(fetched) = wheel(&folder.path().join("target/nixl/nixl-cu13-9.8.7")) else { return };
    let below = folder.path().join("crate");
    fs::create_dir(&below).unwrap();
    let probe = Probe { load: vec![PathBuf::new()], folder: Some(&below), moved: true, ..Probe::default() };
    let answer = probe.run().remove(0);
    assert_eq!(answer, format!("ok Fetched 9.8.7 {}", fetched.canonicalize().unwrap().display()));

    let environment = folder.path().join("venv");
    wheel(&environment.join("lib/python3.12/site-packages")).unwrap();
    let answer = search(vec![("VIRTUAL_ENV", environment)]);
    assert!(answer.starts_with("ok PythonWheel 9.8.7"), "{answer}");
}

#[test]
fn a_folder_that_everybody_may_write_to_is_not_searched() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let wheels = folder.path().join("target/nixl");
    let Some(_) = fake::install(&wheels.join("w/.nixl_cu13.mesonpy.libs"), Fake::Whole) else { return };
    fs::set_permissions(&wheels, fs::Permissions::from_mode(0o777)).unwrap();
    let probe = Probe { load: vec![PathBuf::new()], folder: Some(folder.path()), moved: true, ..Probe::default() };
    let answer = probe.run().remove(0);
    assert!(!answer.starts_with("ok Fetched"), "{answer}");
}

#[test]
fn the_nixl_that_is_mapped_is_used_and_another_refused() {
    let folder = tempfile::tempdir().unwrap();
    let Some(first) = fake::install(&folder.path().join("first"), Fake::Whole) else { return };
    let second = fake::install(&folder.path().join("second"), Fake::Whole).unwrap();
    let mapped = first.with_file_name("libnixl.so");
    let answers = Probe {
        map: Some(&mapped),
        load: vec![second.clone(), PathBuf::new(), second.clone(), first],
        ..Probe::default()
    }
    .run();
    assert!(answers[0].starts_with("Conflict"), "{answers:?}");
    assert!(answers[0].contains(mapped.to_str().unwrap()) && answers[0].contains(second.to_str().unwrap()));
    assert!(answers[1].starts_with("ok Mapped"), "{answers:?}");
    assert!(answers[2].starts_with("Conflict"), "{answers:?}");
    assert!(answers[3].starts_with("ok"), "{answers:?}");
}

#[test]
fn a_mapped_nixl_without_its_c_library_is_a_conflict() {
    let folder = tempfile::tempdir().unwrap();
    let Some(capi) = fake::install(folder.path(), Fake::Whole) else { return };
    let mapped = capi.with_file_name("libnixl.so");
    fs::remove_file(&capi).unwrap();
    let answer = Probe { map: Some(&mapped), load: vec![PathBuf::new()], ..Probe::default() }.run().remove(0);
    assert!(answer.starts_with("Conflict"), "{answer}");
}

#[test]
fn the_real_nixl_and_a_copy_do_not_share_a_process() {
    let Some(api) = nixl_sys::testing::require_nixl() else { return };
    let folder = tempfile::tempdir().unwrap();
    let Some(copy) = fake::install(folder.path(), Fake::Whole) else { return };
    let real = api.origin().path.clone();
    let answers = Probe { load: vec![real.clone(), copy.clone()], ..Probe::default() }.run();
    assert!(answers[0].starts_with("ok Explicit") && answers[1].starts_with("Conflict"), "{answers:?}");
    let mapped = copy.with_file_name("libnixl.so");
    let answer = Probe { map: Some(&mapped), load: vec![real], ..Probe::default() }.run().remove(0);
    assert!(answer.starts_with("Conflict"), "{answer}");
}
