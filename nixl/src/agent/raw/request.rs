//! Requests and prepared lists.

use std::{ffi::CStr, ptr};

use nixl_sys::{
    Api, NixlError, Progress, nixl_capi_opt_args_t, nixl_capi_xfer_dlist_handle_t, nixl_capi_xfer_op_t,
    nixl_capi_xfer_req_t,
};

use super::{RawAgent, lists::XferList};
use crate::descs::{LocalDescs, RemoteDescs};

/// One transfer. Dropped without [`RawAgent::release`] it is leaked.
#[derive(Debug)]
pub(in super::super) struct Request(nixl_capi_xfer_req_t);

/// A list that NIXL has looked up in advance. Dropped without [`RawAgent::release_prepared`] it is leaked.
#[derive(Debug)]
pub(in super::super) struct Prepared(nixl_capi_xfer_dlist_handle_t);

/// Options of one call; they are copied by it.
struct Options {
    api: &'static Api,
    options: nixl_capi_opt_args_t,
}

impl Options {
    /// With a notification to send after the bytes.
    fn notify(api: &'static Api, message: &[u8]) -> Result<Self, NixlError> {
        let mut options: nixl_capi_opt_args_t = ptr::null_mut();
        // SAFETY: the out pointer lives through the call.
        unsafe { (api.create_opt_args)(&raw mut options) }.ok("nixl_capi_create_opt_args")?;
        let options = Self { api, options };
        // SAFETY: options and message live through the call, which copies the message.
        let status = unsafe { (api.opt_args_set_notif_msg)(options.options, message.as_ptr().cast(), message.len()) };
        status.ok("nixl_capi_opt_args_set_notif_msg")?;
        // SAFETY: options are alive.
        let status = unsafe { (api.opt_args_set_has_notif)(options.options, true) };
        status.ok("nixl_capi_opt_args_set_has_notif")?;
        Ok(options)
    }
}

impl Drop for Options {
    fn drop(&mut self) {
        // SAFETY: made by create_opt_args, freed once, here.
        let _leak = unsafe { (self.api.destroy_opt_args)(self.options) };
    }
}

fn raw(options: Option<&Options>) -> nixl_capi_opt_args_t {
    options.map_or(ptr::null_mut(), |options| options.options)
}

impl RawAgent {
    /// Makes a read of `remote` at `peer` into `local`. Nothing moves yet.
    #[doc(alias = "nixl_capi_create_xfer_req")]
    pub(in super::super) fn create_read(
        &self,
        local: &LocalDescs,
        remote: &RemoteDescs,
        peer: &CStr,
        notify: Option<&[u8]>,
    ) -> Result<Request, NixlError> {
        let options = notify.map(|message| Options::notify(self.api, message)).transpose()?;
        let here = self.local_list(local)?;
        let there = self.remote_list(remote)?;
        let mut request: nixl_capi_xfer_req_t = ptr::null_mut();
        // SAFETY: all handles live through the call, which copies lists, name and options; the addresses of `local` lie in a
        // registered region that the driver pins for as long as the request lives.
        let status = unsafe {
            (self.api.create_xfer_req)(
                self.agent,
                nixl_capi_xfer_op_t::NIXL_CAPI_XFER_OP_READ,
                here.raw(),
                there.raw(),
                peer.as_ptr(),
                &raw mut request,
                raw(options.as_ref()),
            )
        };
        status.ok("nixl_capi_create_xfer_req").map(|()| Request(request))
    }

    /// Looks up our side of reads to come.
    #[doc(alias = "nixl_capi_prep_xfer_dlist")]
    pub(in super::super) fn prepare_local(&self, local: &LocalDescs) -> Result<Prepared, NixlError> {
        let list = self.local_list(local)?;
        // The empty name stands for our own side.
        self.prepare(c"", &list)
    }

    /// Looks up a peer's side of reads to come.
    #[doc(alias = "nixl_capi_prep_xfer_dlist")]
    pub(in super::super) fn prepare_remote(&self, peer: &CStr, remote: &RemoteDescs) -> Result<Prepared, NixlError> {
        let list = self.remote_list(remote)?;
        self.prepare(peer, &list)
    }

    fn prepare(&self, peer: &CStr, list: &XferList) -> Result<Prepared, NixlError> {
        let mut prepared: nixl_capi_xfer_dlist_handle_t = ptr::null_mut();
        // SAFETY: all handles live through the call, which copies list and name; the out pointer is not null.
        let status = unsafe {
            (self.api.prep_xfer_dlist)(self.agent, peer.as_ptr(), list.raw(), &raw mut prepared, ptr::null_mut())
        };
        status.ok("nixl_capi_prep_xfer_dlist").map(|()| Prepared(prepared))
    }

    /// Makes a read of entries of prepared lists. The driver has checked the indices.
    #[doc(alias = "nixl_capi_make_xfer_req")]
    pub(in super::super) fn make_read(
        &self,
        local: (&Prepared, &[i32]),
        remote: (&Prepared, &[i32]),
        notify: Option<&[u8]>,
    ) -> Result<Request, NixlError> {
        let options = notify.map(|message| Options::notify(self.api, message)).transpose()?;
        let mut request: nixl_capi_xfer_req_t = ptr::null_mut();
        // SAFETY: agent, both lists, indices and options live through the call, which copies the indices and options; both
        // lists outlive the request because the driver pins them with it.
        let status = unsafe {
            (self.api.make_xfer_req)(
                self.agent,
                nixl_capi_xfer_op_t::NIXL_CAPI_XFER_OP_READ,
                local.0.0,
                local.1.as_ptr(),
                local.1.len(),
                remote.0.0,
                remote.1.as_ptr(),
                remote.1.len(),
                &raw mut request,
                raw(options.as_ref()),
            )
        };
        status.ok("nixl_capi_make_xfer_req").map(|()| Request(request))
    }

    /// Starts it. May take as long as the whole transfer.
    #[doc(alias = "nixl_capi_post_xfer_req")]
    pub(in super::super) fn post(&self, request: &mut Request) -> Result<Progress, NixlError> {
        // SAFETY: agent and request are alive; no options, so the request's own notification stays.
        unsafe { (self.api.post_xfer_req)(self.agent, request.0, ptr::null_mut()) }.progress("nixl_capi_post_xfer_req")
    }

    /// How far it is. Also what sends its notification.
    #[doc(alias = "nixl_capi_get_xfer_status")]
    pub(in super::super) fn progress(&self, request: &mut Request) -> Result<Progress, NixlError> {
        // SAFETY: agent and request are alive and used by this thread alone.
        unsafe { (self.api.get_xfer_status)(self.agent, request.0) }.progress("nixl_capi_get_xfer_status")
    }

    /// Gives it back. When NIXL does not take it, it stays alive and comes back. Success is no proof that bytes have stopped landing.
    #[doc(alias = "nixl_capi_release_xfer_req")]
    pub(in super::super) fn release(&self, request: Request) -> Result<(), (Option<Request>, NixlError)> {
        // SAFETY: agent and request are alive.
        let released = unsafe { (self.api.release_xfer_req)(self.agent, request.0) }.ok("nixl_capi_release_xfer_req");
        if let Err(error) = released {
            return Err((Some(request), error));
        }
        // SAFETY: released, and `request` is gone after, so this is the only and last use.
        let destroyed = unsafe { (self.api.destroy_xfer_req)(request.0) }.ok("nixl_capi_destroy_xfer_req");
        destroyed.map_err(|error| (None, error))
    }

    /// Gives a prepared list back; on an error it is leaked.
    #[doc(alias = "nixl_capi_release_xfer_dlist_handle")]
    #[expect(clippy::needless_pass_by_value, reason = "it is gone after, whatever NIXL answers")]
    pub(in super::super) fn release_prepared(&self, prepared: Prepared) -> Result<(), NixlError> {
        let Prepared(handle) = prepared;
        // SAFETY: agent and list are alive; the driver calls this once, when no request made from it is left.
        let status = unsafe { (self.api.release_xfer_dlist_handle)(self.agent, handle) };
        status.ok("nixl_capi_release_xfer_dlist_handle")
    }

    fn local_list(&self, local: &LocalDescs) -> Result<XferList, NixlError> {
        let memory = local.region().memory();
        let base = memory.base();
        let entries = local.entries().iter().map(|&(offset, len)| (base + offset, len));
        XferList::of(self.api, memory.kind(), memory.device_id(), entries)
    }

    fn remote_list(&self, remote: &RemoteDescs) -> Result<XferList, NixlError> {
        XferList::of(self.api, remote.kind(), remote.device(), remote.entries().iter().copied())
    }
}
