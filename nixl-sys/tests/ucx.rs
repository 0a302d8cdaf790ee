//! UCX's answers, before and after NIXL has loaded it. One test, because what is mapped belongs to the whole process.

use std::ptr;

use nixl_sys::ucx::{DeviceKind, ThreadLevel, Ucx, UcxError};
use nixl_sys::{nixl_capi_agent_config_t, nixl_capi_thread_sync_t, testing};

#[test]
#[expect(unsafe_code, reason = "calls NIXL")]
fn ucx_is_asked_once_nixl_has_loaded_it() {
    let Some(api) = testing::require_nixl() else { return };
    assert!(matches!(Ucx::of_nixl(), Err(UcxError::NotMapped)), "UCX comes with the first backend");

    let config = nixl_capi_agent_config_t {
        enable_prog_thread: false,
        enable_listen_thread: false,
        listen_port: 0,
        thread_sync: nixl_capi_thread_sync_t::NIXL_CAPI_THREAD_SYNC_RW,
        num_workers: 1,
        pthr_delay_us: 0,
        lthr_delay_us: 0,
        capture_telemetry: false,
    };
    let (mut agent, mut params, mut backend) = (ptr::null_mut(), ptr::null_mut(), ptr::null_mut());
    // SAFETY: name and configuration outlive the call.
    let status = unsafe { (api.create_configured_agent)(c"ucx-test".as_ptr(), &raw const config, &raw mut agent) };
    status.ok("create_configured_agent").unwrap();
    // SAFETY: writes a handle.
    unsafe { (api.create_params)(&raw mut params) }.ok("create_params").unwrap();
    // SAFETY: agent and params are alive.
    let status = unsafe { (api.create_backend)(agent, c"UCX".as_ptr(), params, &raw mut backend) };
    status.ok("create_backend").unwrap();

    let ucx = Ucx::of_nixl().unwrap();
    println!("{ucx:?}");
    assert!(ucx.path().file_name().unwrap().to_str().unwrap().starts_with("libucp"));
    let (major, minor, patch) = ucx.release();
    assert_eq!(ucx.version(), format!("{major}.{minor}.{patch}"));
    assert_eq!(ucx.thread_level().unwrap(), ThreadLevel::Multi);

    let transports = ucx.transports().unwrap();
    for transport in &transports {
        println!("{transport:?}");
    }
    assert!(transports.iter().any(|t| t.name == "tcp" && t.kind == DeviceKind::Network));
    assert!(transports.iter().any(|t| t.name == "self" && t.kind == DeviceKind::Loopback));

    let config = ucx.config().unwrap();
    println!("{} settings", config.lines().count());
    assert!(config.lines().any(|line| line.starts_with("UCX_TLS=")), "{config}");

    let types = ucx.memory_types().unwrap();
    println!("{:?}", types.names());
    assert!(types.has_host());

    // SAFETY: alive, and not used again.
    unsafe { (api.destroy_backend)(backend) }.ok("destroy_backend").unwrap();
    // SAFETY: as above.
    unsafe { (api.destroy_params)(params) }.ok("destroy_params").unwrap();
    // SAFETY: as above; every other handle is gone.
    unsafe { (api.destroy_agent)(agent) }.ok("destroy_agent").unwrap();
}
