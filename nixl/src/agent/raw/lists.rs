//! Lists that are built for one call and freed after it. They hold no memory and no agent.

use std::ptr;

use nixl_sys::{Api, NixlError, nixl_capi_mem_type_t, nixl_capi_reg_dlist_t, nixl_capi_xfer_dlist_t};

use super::invalid;
use crate::{descs::MemKind, memory::Memory};

pub(super) struct RegList {
    api: &'static Api,
    list: nixl_capi_reg_dlist_t,
}

impl RegList {
    /// The whole of `memory`.
    pub(super) fn of(api: &'static Api, memory: &Memory) -> Result<Self, NixlError> {
        let mut list: nixl_capi_reg_dlist_t = ptr::null_mut();
        let kind = raw(memory.kind());
        // SAFETY: the out pointer lives through the call.
        unsafe { (api.create_reg_dlist)(kind, &raw mut list) }.ok("nixl_capi_create_reg_dlist")?;
        let list = Self { api, list };
        let (base, len) = (size(memory.base())?, size(memory.len())?);
        // SAFETY: the list is alive; an entry is three numbers, no metadata is passed.
        let status = unsafe { (api.reg_dlist_add_desc)(list.list, base, len, memory.device_id(), ptr::null(), 0) };
        status.ok("nixl_capi_reg_dlist_add_desc")?;
        Ok(list)
    }

    pub(super) fn raw(&self) -> nixl_capi_reg_dlist_t {
        self.list
    }
}

impl Drop for RegList {
    fn drop(&mut self) {
        // SAFETY: made by create_reg_dlist, freed once, here.
        let _leak = unsafe { (self.api.destroy_reg_dlist)(self.list) };
    }
}

pub(super) struct XferList {
    api: &'static Api,
    list: nixl_capi_xfer_dlist_t,
}

impl XferList {
    pub(super) fn of(
        api: &'static Api,
        kind: MemKind,
        device: u64,
        entries: impl Iterator<Item = (u64, u64)>,
    ) -> Result<Self, NixlError> {
        let kind = raw(kind);
        let mut list: nixl_capi_xfer_dlist_t = ptr::null_mut();
        // SAFETY: the out pointer lives through the call.
        unsafe { (api.create_xfer_dlist)(kind, &raw mut list) }.ok("nixl_capi_create_xfer_dlist")?;
        let list = Self { api, list };
        for (addr, len) in entries {
            let (addr, len) = (size(addr)?, size(len)?);
            // SAFETY: the list is alive; an entry is three numbers.
            let status = unsafe { (api.xfer_dlist_add_desc)(list.list, addr, len, device) };
            status.ok("nixl_capi_xfer_dlist_add_desc")?;
        }
        Ok(list)
    }

    pub(super) fn raw(&self) -> nixl_capi_xfer_dlist_t {
        self.list
    }
}

impl Drop for XferList {
    fn drop(&mut self) {
        // SAFETY: made by create_xfer_dlist, freed once, here; requests and prepared lists copy what they need.
        let _leak = unsafe { (self.api.destroy_xfer_dlist)(self.list) };
    }
}

fn raw(kind: MemKind) -> nixl_capi_mem_type_t {
    match kind {
        MemKind::Dram => nixl_capi_mem_type_t::NIXL_CAPI_MEM_DRAM,
        MemKind::Vram => nixl_capi_mem_type_t::NIXL_CAPI_MEM_VRAM,
    }
}

fn size(number: u64) -> Result<usize, NixlError> {
    usize::try_from(number).map_err(|_| invalid("nixl_capi_xfer_dlist_add_desc"))
}
