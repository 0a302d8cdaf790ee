//! The list of transports and devices: what `ucx_info -d` prints.

use std::ffi::{c_char, c_uint};
use std::{ptr, slice};

use super::bindings::{
    uct_component_attr, uct_component_attr_field as Field, uct_component_h, uct_device_type_t, uct_md_config_t,
    uct_md_h, uct_md_resource_desc, uct_tl_resource_desc,
};
use super::{Ucx, UcxError};

/// One way of moving bytes, over one device.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Transport {
    /// UCX's component, for example `tcp`, `ib`, `cuda_ipc`.
    pub component: String,
    /// Its memory domain, for example `mlx5_0`.
    pub domain: String,
    /// The name for `UCX_TLS`, for example `tcp`, `cma`, `rc_mlx5`.
    pub name: String,
    /// The name for `UCX_NET_DEVICES`, for example `eth0`, `mlx5_0:1`, `memory`.
    pub device: String,
    /// What the device is.
    pub kind: DeviceKind,
}

/// What a transport's device is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum DeviceKind {
    /// A network interface.
    Network,
    /// Memory shared on this host.
    SharedMemory,
    /// An accelerator.
    Accelerator,
    /// Loopback within one process.
    Loopback,
    /// A number that this crate does not know.
    Unknown(u32),
}

impl Ucx {
    /// Every transport and device that UCX finds here, sorted, whatever `UCX_TLS` says.
    ///
    /// A memory domain that cannot be opened has none: that is how an absent device shows.
    pub fn transports(&self) -> Result<Vec<Transport>, UcxError> {
        let (mut list, mut count): (*mut uct_component_h, c_uint) = (ptr::null_mut(), 0);
        // SAFETY: UCX writes a list of its own and its length.
        let status = unsafe { (self.functions.uct_query_components)(&raw mut list, &raw mut count) };
        self.ok("uct_query_components", status)?;
        // SAFETY: the list stays until it is released below.
        let components = unsafe { list_of(list, count) };
        let found: Result<Vec<_>, _> = components.iter().map(|component| self.of_component(*component)).collect();
        // SAFETY: made by UCX above, and not used again.
        unsafe { (self.functions.uct_release_component_list)(list) };
        let mut transports: Vec<_> = found?.into_iter().flatten().collect();
        transports.sort();
        Ok(transports)
    }

    fn of_component(&self, component: uct_component_h) -> Result<Vec<Transport>, UcxError> {
        let mut attributes = uct_component_attr {
            field_mask: (Field::UCT_COMPONENT_ATTR_FIELD_NAME.0 | Field::UCT_COMPONENT_ATTR_FIELD_MD_RESOURCE_COUNT.0)
                .into(),
            name: [0; 16],
            md_resource_count: 0,
            md_resources: ptr::null_mut(),
        };
        // SAFETY: the component is alive; UCX writes the fields that the mask names.
        let status = unsafe { (self.functions.uct_component_query)(component, &raw mut attributes) };
        self.ok("uct_component_query", status)?;

        let count = usize::try_from(attributes.md_resource_count).unwrap_or_default();
        let mut domains = vec![uct_md_resource_desc { md_name: [0; 16] }; count];
        attributes.field_mask = Field::UCT_COMPONENT_ATTR_FIELD_MD_RESOURCES.0.into();
        attributes.md_resources = domains.as_mut_ptr();
        // SAFETY: UCX fills the array, whose length it has just told; both queries see the same component.
        let status = unsafe { (self.functions.uct_component_query)(component, &raw mut attributes) };
        self.ok("uct_component_query", status)?;

        let name = text(&attributes.name);
        Ok(domains.iter().flat_map(|domain| self.of_domain(component, &name, domain)).collect())
    }

    /// The transports of one memory domain; none if it cannot be opened.
    fn of_domain(&self, component: uct_component_h, name: &str, domain: &uct_md_resource_desc) -> Vec<Transport> {
        let mut config: *mut uct_md_config_t = ptr::null_mut();
        // SAFETY: the component is alive; no prefix and no file mean the UCX_ environment.
        let status =
            unsafe { (self.functions.uct_md_config_read)(component, ptr::null(), ptr::null(), &raw mut config) };
        if status != 0 {
            return Vec::new();
        }
        let mut opened: uct_md_h = ptr::null_mut();
        // SAFETY: component and configuration are alive, and the name is one that UCX gave.
        let status =
            unsafe { (self.functions.uct_md_open)(component, domain.md_name.as_ptr(), config, &raw mut opened) };
        // SAFETY: made by UCX above, and not used again.
        unsafe { (self.functions.uct_config_release)(config.cast()) };
        if status != 0 {
            return Vec::new();
        }
        let (mut list, mut count): (*mut uct_tl_resource_desc, c_uint) = (ptr::null_mut(), 0);
        // SAFETY: the domain is open; UCX writes a list of its own and its length.
        let status = unsafe { (self.functions.uct_md_query_tl_resources)(opened, &raw mut list, &raw mut count) };
        let mut found = Vec::new();
        if status == 0 {
            // SAFETY: the list stays until it is released below.
            let resources = unsafe { list_of(list, count) };
            found.extend(resources.iter().map(|resource| Transport {
                component: name.to_owned(),
                domain: text(&domain.md_name),
                name: text(&resource.tl_name),
                device: text(&resource.dev_name),
                kind: resource.dev_type.into(),
            }));
            // SAFETY: made by UCX above, and not used again.
            unsafe { (self.functions.uct_release_tl_resource_list)(list) };
        }
        // SAFETY: opened above, and not used again.
        unsafe { (self.functions.uct_md_close)(opened) };
        found
    }
}

impl From<uct_device_type_t> for DeviceKind {
    fn from(kind: uct_device_type_t) -> Self {
        match kind {
            uct_device_type_t::UCT_DEVICE_TYPE_NET => Self::Network,
            uct_device_type_t::UCT_DEVICE_TYPE_SHM => Self::SharedMemory,
            uct_device_type_t::UCT_DEVICE_TYPE_ACC => Self::Accelerator,
            uct_device_type_t::UCT_DEVICE_TYPE_SELF => Self::Loopback,
            uct_device_type_t(other) => Self::Unknown(other),
        }
    }
}

/// # Safety
///
/// `list` is null or has `count` entries that stay as they are for `'a`.
unsafe fn list_of<'a, T>(list: *const T, count: c_uint) -> &'a [T] {
    match usize::try_from(count) {
        // SAFETY: not null, and the caller promises the rest.
        Ok(count) if !list.is_null() => unsafe { slice::from_raw_parts(list, count) },
        _ => &[],
    }
}

/// The text in a fixed field, which fills it or ends with a NUL.
fn text(field: &[c_char]) -> String {
    let bytes: Vec<u8> =
        field.iter().map(|&c| c.to_ne_bytes()).map(|[byte]| byte).take_while(|&byte| byte != 0).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}
