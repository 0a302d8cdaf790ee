//! The C API as owned handles of one thread.
//!
//! Everything here holds raw pointers and so is neither `Send` nor `Sync`: it lives and dies on the agent's thread. A
//! [`Request`] or [`Prepared`] belongs to the [`RawAgent`] that made it; a driver has exactly one, so they cannot be mixed up.
//! None of them has a `Drop` that calls NIXL: what is dropped without being given back is leaked, never freed too early.
#![allow(unsafe_code, reason = "FFI")]

mod lists;
mod notifs;
mod params;
mod request;

use std::{
    ffi::{CStr, CString, c_char, c_void},
    ptr,
};

use bytes::Bytes;
use nixl_sys::{Api, NixlError, RawStatus, nixl_capi_agent_config_t, nixl_capi_agent_t, nixl_capi_thread_sync_t};

use crate::memory::Memory;

pub use params::PluginInfo;
pub(super) use request::{Prepared, Request};

use lists::RegList;
use notifs::NotifMap;

/// One NIXL agent. Must be ended with [`RawAgent::destroy`]; dropped otherwise, it goes on existing.
pub(super) struct RawAgent {
    api: &'static Api,
    agent: nixl_capi_agent_t,
    notifs: NotifMap,
}

impl RawAgent {
    /// Makes an agent; `progress_us` 0 means no progress thread.
    #[doc(alias = "nixl_capi_create_configured_agent")]
    pub(super) fn create(api: &'static Api, name: &CStr, progress_us: u64) -> Result<Self, NixlError> {
        let config = nixl_capi_agent_config_t {
            enable_prog_thread: progress_us > 0,
            enable_listen_thread: false,
            listen_port: 0,
            thread_sync: nixl_capi_thread_sync_t::NIXL_CAPI_THREAD_SYNC_RW,
            num_workers: 1,
            pthr_delay_us: progress_us,
            lthr_delay_us: 100_000,
            capture_telemetry: false,
        };
        let mut agent: nixl_capi_agent_t = ptr::null_mut();
        // SAFETY: name, config and out pointer live through the call, which keeps none of them.
        let status = unsafe { (api.create_configured_agent)(name.as_ptr(), &raw const config, &raw mut agent) };
        status.ok("nixl_capi_create_configured_agent")?;
        Ok(Self { api, agent, notifs: NotifMap::create(api)? })
    }

    /// Destroys the agent with its backends, which joins their threads. On an error it stays and must not be used.
    #[doc(alias = "nixl_capi_destroy_agent")]
    pub(super) fn destroy(self) -> Result<(), NixlError> {
        self.notifs.destroy(self.api);
        // SAFETY: `self.agent` is alive until here and `self` is gone after; the driver lets go of all handles with it.
        unsafe { (self.api.destroy_agent)(self.agent) }.ok("nixl_capi_destroy_agent")
    }

    /// Registers host memory.
    #[doc(alias = "nixl_capi_register_mem")]
    pub(super) fn register(&self, memory: &Memory) -> Result<(), NixlError> {
        let list = RegList::of(self.api, memory)?;
        // SAFETY: agent and list are alive; the driver keeps `memory` until `deregister` or `destroy` has succeeded.
        unsafe { (self.api.register_mem)(self.agent, list.raw(), ptr::null_mut()) }.ok("nixl_capi_register_mem")
    }

    /// Undoes [`RawAgent::register`]. The driver calls it when no list of this memory is left.
    #[doc(alias = "nixl_capi_deregister_mem")]
    pub(super) fn deregister(&self, memory: &Memory) -> Result<(), NixlError> {
        let list = RegList::of(self.api, memory)?;
        // SAFETY: agent and list are alive; no request or prepared list over this memory is, the driver's pins show it.
        unsafe { (self.api.deregister_mem)(self.agent, list.raw(), ptr::null_mut()) }.ok("nixl_capi_deregister_mem")
    }

    /// The blob that peers load.
    #[doc(alias = "nixl_capi_get_local_md")]
    pub(super) fn local_metadata(&self) -> Result<Bytes, NixlError> {
        let mut bytes: *mut c_void = ptr::null_mut();
        let mut len = 0;
        // SAFETY: agent is alive; both out pointers live through the call.
        let status = unsafe { (self.api.get_local_md)(self.agent, &raw mut bytes, &raw mut len) };
        status.ok("nixl_capi_get_local_md")?;
        // SAFETY: on success `bytes` are `len` bytes that now belong to us, until `free`.
        let blob = unsafe { copy_out(bytes, len) };
        // SAFETY: the C API allocates them with malloc and leaves freeing to us; they are not used after.
        unsafe { libc::free(bytes) };
        Ok(blob)
    }

    /// Loads a peer's blob; answers its name as bytes.
    #[doc(alias = "nixl_capi_load_remote_md")]
    pub(super) fn load_peer(&self, blob: &[u8]) -> Result<CString, NixlError> {
        let mut name: *mut c_char = ptr::null_mut();
        // SAFETY: agent is alive, the blob lives through the call, which copies what it needs.
        let status = unsafe { (self.api.load_remote_md)(self.agent, blob.as_ptr().cast(), blob.len(), &raw mut name) };
        status.ok("nixl_capi_load_remote_md")?;
        if name.is_null() {
            return Err(invalid("nixl_capi_load_remote_md"));
        }
        // SAFETY: on success it is a C string that now belongs to us, until `free`.
        let owned = unsafe { CStr::from_ptr(name) }.to_owned();
        // SAFETY: made by strdup, and not used after.
        unsafe { libc::free(name.cast()) };
        Ok(owned)
    }

    /// Drops a peer's metadata. The driver calls it when no request or prepared list of this peer is left.
    #[doc(alias = "nixl_capi_invalidate_remote_md")]
    pub(super) fn forget_peer(&self, peer: &CStr) -> Result<(), NixlError> {
        // SAFETY: agent and name are alive; no handle of ours holds on to the peer's metadata.
        unsafe { (self.api.invalidate_remote_md)(self.agent, peer.as_ptr()) }.ok("nixl_capi_invalidate_remote_md")
    }

    /// Hands a notification to the transport.
    #[doc(alias = "nixl_capi_gen_notif")]
    pub(super) fn notify(&self, peer: &CStr, message: &[u8]) -> Result<(), NixlError> {
        let (at, len) = (message.as_ptr().cast(), message.len());
        // SAFETY: agent, name and message live through the call, which copies the message.
        unsafe { (self.api.gen_notif)(self.agent, peer.as_ptr(), at, len, ptr::null_mut()) }.ok("nixl_capi_gen_notif")
    }

    /// Takes what has come in, and pushes everything under way one step on.
    #[doc(alias = "nixl_capi_get_notifs")]
    pub(super) fn notifications(&mut self) -> Result<Vec<(CString, Bytes)>, NixlError> {
        self.notifs.fetch(self.api, self.agent)
    }
}

/// An answer that the header rules out, treated as an error instead of being used.
fn invalid(call: &'static str) -> NixlError {
    let status = RawStatus::NIXL_CAPI_ERROR_BACKEND;
    NixlError { call, code: status.code(), kind: nixl_sys::StatusKind::Backend }
}

/// # Safety
/// `bytes` is null, or `len` bytes that nobody writes during the call.
unsafe fn copy_out(bytes: *const c_void, len: usize) -> Bytes {
    if bytes.is_null() || len == 0 {
        return Bytes::new();
    }
    // SAFETY: not null, and the caller promises the rest.
    let slice = unsafe { std::slice::from_raw_parts(bytes.cast::<u8>(), len) };
    Bytes::copy_from_slice(slice)
}
