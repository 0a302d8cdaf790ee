//! Plugins, their parameters, and making a backend of one.

use std::{
    collections::BTreeMap,
    ffi::{CStr, CString, c_char},
    ptr,
};

use nixl_sys::{
    Api, NixlError, nixl_capi_backend_t, nixl_capi_mem_list_t, nixl_capi_mem_type_t, nixl_capi_param_iter_t,
    nixl_capi_params_t, nixl_capi_string_list_t,
};

use super::RawAgent;

/// What a plugin says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PluginInfo {
    /// Its parameters with their defaults.
    pub params: BTreeMap<String, String>,
    /// Whether it moves host memory.
    pub dram: bool,
    /// Whether it moves GPU memory.
    pub vram: bool,
}

struct Params {
    api: &'static Api,
    params: nixl_capi_params_t,
}

impl Drop for Params {
    fn drop(&mut self) {
        if !self.params.is_null() {
            // SAFETY: made by NIXL for us, freed once, here.
            let _leak = unsafe { (self.api.destroy_params)(self.params) };
        }
    }
}

impl RawAgent {
    /// The plugins that NIXL found.
    #[doc(alias = "nixl_capi_get_available_plugins")]
    pub(in super::super) fn plugins(&self) -> Result<Vec<String>, NixlError> {
        let mut list: nixl_capi_string_list_t = ptr::null_mut();
        // SAFETY: agent is alive; the out pointer lives through the call.
        let status = unsafe { (self.api.get_available_plugins)(self.agent, &raw mut list) };
        status.ok("nixl_capi_get_available_plugins")?;
        let names = self.strings(list);
        // SAFETY: made for us by the call above, freed once; its strings have been copied.
        let _leak = unsafe { (self.api.destroy_string_list)(list) };
        names
    }

    fn strings(&self, list: nixl_capi_string_list_t) -> Result<Vec<String>, NixlError> {
        let mut count = 0;
        // SAFETY: the list is alive until our caller frees it.
        unsafe { (self.api.string_list_size)(list, &raw mut count) }.ok("nixl_capi_string_list_size")?;
        let mut names = Vec::new();
        for index in 0..count {
            let mut name: *const c_char = ptr::null();
            // SAFETY: the list is alive and `index` is below its size.
            let status = unsafe { (self.api.string_list_get)(list, index, &raw mut name) };
            status.ok("nixl_capi_string_list_get")?;
            // SAFETY: a C string borrowed from the list, or null.
            names.extend(unsafe { text(name) });
        }
        Ok(names)
    }

    /// What a plugin says of itself.
    #[doc(alias = "nixl_capi_get_plugin_params")]
    pub(in super::super) fn plugin_info(&self, plugin: &CStr) -> Result<PluginInfo, NixlError> {
        let mut mems: nixl_capi_mem_list_t = ptr::null_mut();
        let mut params = Params { api: self.api, params: ptr::null_mut() };
        // SAFETY: agent and name are alive; the out pointers live through the call.
        let status =
            unsafe { (self.api.get_plugin_params)(self.agent, plugin.as_ptr(), &raw mut mems, &raw mut params.params) };
        status.ok("nixl_capi_get_plugin_params")?;
        let kinds = self.kinds(mems);
        // SAFETY: made for us by the call above, freed once, not used after.
        let _leak = unsafe { (self.api.destroy_mem_list)(mems) };
        let kinds = kinds?;
        Ok(PluginInfo {
            params: read(self.api, &params)?,
            dram: kinds.contains(&nixl_capi_mem_type_t::NIXL_CAPI_MEM_DRAM),
            vram: kinds.contains(&nixl_capi_mem_type_t::NIXL_CAPI_MEM_VRAM),
        })
    }

    fn kinds(&self, mems: nixl_capi_mem_list_t) -> Result<Vec<nixl_capi_mem_type_t>, NixlError> {
        let mut count = 0;
        // SAFETY: the list is alive until our caller frees it.
        unsafe { (self.api.mem_list_size)(mems, &raw mut count) }.ok("nixl_capi_mem_list_size")?;
        let mut kinds = Vec::new();
        for index in 0..count {
            let mut kind = nixl_capi_mem_type_t::NIXL_CAPI_MEM_UNKNOWN;
            // SAFETY: the list is alive and `index` is below its size.
            unsafe { (self.api.mem_list_get)(mems, index, &raw mut kind) }.ok("nixl_capi_mem_list_get")?;
            kinds.push(kind);
        }
        Ok(kinds)
    }

    /// Makes the agent's backend. Its handle is freed at once: with one backend NIXL needs none, and the engine is the agent's.
    #[doc(alias = "nixl_capi_create_backend")]
    pub(in super::super) fn create_backend(
        &mut self,
        plugin: &CStr,
        wanted: &[(CString, CString)],
    ) -> Result<(), NixlError> {
        let mut mems: nixl_capi_mem_list_t = ptr::null_mut();
        let mut params = Params { api: self.api, params: ptr::null_mut() };
        // The defaults first: NIXL takes the map that it is given as the whole truth.
        // SAFETY: agent and name are alive; the out pointers live through the call.
        let status =
            unsafe { (self.api.get_plugin_params)(self.agent, plugin.as_ptr(), &raw mut mems, &raw mut params.params) };
        status.ok("nixl_capi_get_plugin_params")?;
        // SAFETY: made for us by the call above, freed once, not used after.
        let _leak = unsafe { (self.api.destroy_mem_list)(mems) };
        for (key, value) in wanted {
            // SAFETY: params, key and value are alive; the call copies the strings.
            let status = unsafe { (self.api.params_add)(params.params, key.as_ptr(), value.as_ptr()) };
            status.ok("nixl_capi_params_add")?;
        }
        let mut backend: nixl_capi_backend_t = ptr::null_mut();
        // SAFETY: agent, name and params are alive; the out pointer lives through the call.
        let status = unsafe { (self.api.create_backend)(self.agent, plugin.as_ptr(), params.params, &raw mut backend) };
        status.ok("nixl_capi_create_backend")?;
        // SAFETY: frees the handle only, once; the engine lives as long as the agent.
        let _leak = unsafe { (self.api.destroy_backend)(backend) };
        Ok(())
    }
}

fn read(api: &'static Api, params: &Params) -> Result<BTreeMap<String, String>, NixlError> {
    let mut empty = true;
    // SAFETY: params are alive; the out pointer lives through the call.
    unsafe { (api.params_is_empty)(params.params, &raw mut empty) }.ok("nixl_capi_params_is_empty")?;
    let mut found = BTreeMap::new();
    if empty {
        return Ok(found);
    }
    let mut iterator: nixl_capi_param_iter_t = ptr::null_mut();
    // SAFETY: params are alive and outlive the iterator, which is freed below.
    let status = unsafe { (api.params_create_iterator)(params.params, &raw mut iterator) };
    status.ok("nixl_capi_params_create_iterator")?;
    let mut end = Ok(());
    // Plugins have some dozens of parameters; the bound keeps a library that never says "no more" from holding us.
    for _ in 0..4096 {
        let (mut key, mut value, mut more): (*const c_char, *const c_char, bool) = (ptr::null(), ptr::null(), false);
        // SAFETY: the iterator is alive; the out pointers live through the call.
        let status = unsafe { (api.params_iterator_next)(iterator, &raw mut key, &raw mut value, &raw mut more) };
        end = status.ok("nixl_capi_params_iterator_next");
        // SAFETY: null, or a C string that stays valid until the next call, and is copied before it.
        let key = unsafe { text(key) };
        // SAFETY: as for the key.
        let value = unsafe { text(value) };
        let (Ok(()), Some(key)) = (end, key) else { break };
        found.insert(key, value.unwrap_or_default());
        if !more {
            break;
        }
    }
    // SAFETY: made above, freed once, not used after.
    let _leak = unsafe { (api.params_destroy_iterator)(iterator) };
    end.map(|()| found)
}

/// # Safety
/// `string` is null or a C string that does not change during the call.
unsafe fn text(string: *const c_char) -> Option<String> {
    if string.is_null() {
        return None;
    }
    // SAFETY: not null, and the caller promises the rest.
    Some(unsafe { CStr::from_ptr(string) }.to_string_lossy().into_owned())
}
