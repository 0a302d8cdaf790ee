//! Notifications as owned bytes.

use std::{
    ffi::{CStr, CString, c_char, c_void},
    ptr,
};

use bytes::Bytes;
use nixl_sys::{Api, NixlError, nixl_capi_agent_t, nixl_capi_notif_map_t};

use super::{copy_out, invalid};

/// One map, used again and again.
pub(super) struct NotifMap(nixl_capi_notif_map_t);

impl NotifMap {
    pub(super) fn create(api: &'static Api) -> Result<Self, NixlError> {
        let mut map: nixl_capi_notif_map_t = ptr::null_mut();
        // SAFETY: the out pointer lives through the call.
        unsafe { (api.create_notif_map)(&raw mut map) }.ok("nixl_capi_create_notif_map")?;
        Ok(Self(map))
    }

    pub(super) fn destroy(&self, api: &'static Api) {
        // SAFETY: made by create_notif_map; the one caller, `RawAgent::destroy`, consumes the agent that holds it.
        let _leak = unsafe { (api.destroy_notif_map)(self.0) };
    }

    /// The agent is the one that holds this map.
    pub(super) fn fetch(
        &mut self,
        api: &'static Api,
        agent: nixl_capi_agent_t,
    ) -> Result<Vec<(CString, Bytes)>, NixlError> {
        // SAFETY: agent and map are alive and used by this thread alone.
        unsafe { (api.get_notifs)(agent, self.0, ptr::null_mut()) }.ok("nixl_capi_get_notifs")?;
        let mut peers = 0;
        // SAFETY: the map is alive; the out pointer lives through the call.
        unsafe { (api.notif_map_size)(self.0, &raw mut peers) }.ok("nixl_capi_notif_map_size")?;
        let mut found = Vec::new();
        if peers == 0 {
            return Ok(found);
        }
        for index in 0..peers {
            let name = self.peer(api, index)?;
            for at in 0..self.count(api, &name)? {
                found.push((name.clone(), self.message(api, &name, at)?));
            }
        }
        // SAFETY: the map is alive; names and bytes borrowed from it have been copied.
        unsafe { (api.notif_map_clear)(self.0) }.ok("nixl_capi_notif_map_clear")?;
        Ok(found)
    }

    fn peer(&self, api: &'static Api, index: usize) -> Result<CString, NixlError> {
        let mut name: *const c_char = ptr::null();
        // SAFETY: `fetch` asks below the map's size only, as the function demands.
        let status = unsafe { (api.notif_map_get_agent_at)(self.0, index, &raw mut name) };
        status.ok("nixl_capi_notif_map_get_agent_at")?;
        if name.is_null() {
            return Err(invalid("nixl_capi_notif_map_get_agent_at"));
        }
        // SAFETY: a C string that stays the map's, which is not changed before it is copied here.
        Ok(unsafe { CStr::from_ptr(name) }.to_owned())
    }

    fn count(&self, api: &'static Api, name: &CStr) -> Result<usize, NixlError> {
        let mut count = 0;
        // SAFETY: map, name and out pointer live through the call.
        let status = unsafe { (api.notif_map_get_notifs_size)(self.0, name.as_ptr(), &raw mut count) };
        status.ok("nixl_capi_notif_map_get_notifs_size").map(|()| count)
    }

    fn message(&self, api: &'static Api, name: &CStr, at: usize) -> Result<Bytes, NixlError> {
        let mut bytes: *const c_void = ptr::null();
        let mut len = 0;
        // SAFETY: map, name and out pointers live through the call, `at` is below the count.
        let status = unsafe { (api.notif_map_get_notif)(self.0, name.as_ptr(), at, &raw mut bytes, &raw mut len) };
        status.ok("nixl_capi_notif_map_get_notif")?;
        // SAFETY: they stay the map's, which is not changed before they are copied here.
        Ok(unsafe { copy_out(bytes, len) })
    }
}
