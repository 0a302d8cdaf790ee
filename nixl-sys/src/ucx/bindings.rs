// Generated from include/ucx.h by scripts/bindings; do not edit.

pub type ucs_status_t = ::core::ffi::c_schar;
pub type ucp_config_t = ucp_config;
pub type ucp_context_h = *mut ucp_context;
pub type ucp_lib_attr_t = ucp_lib_attr;
pub type ucp_params_t = ucp_params;
pub type ucp_context_attr_t = ucp_context_attr;
pub type uct_component_h = *mut uct_component;
pub type uct_md_h = *mut uct_md;
pub type uct_md_config_t = uct_md_config;
pub type uct_md_resource_desc_t = uct_md_resource_desc;
pub type uct_component_attr_t = uct_component_attr;
pub type uct_tl_resource_desc_t = uct_tl_resource_desc;
#[repr(C)]
#[derive(Debug)]
pub struct ucp_config {
    _unused: [u8; 0],
}
#[repr(C)]
#[derive(Debug)]
pub struct ucp_context {
    _unused: [u8; 0],
}
#[repr(transparent)]
#[derive(Debug, Copy, Clone, Hash, PartialEq, Eq)]
pub struct ucs_thread_mode_t(pub ::core::ffi::c_uint);
#[repr(transparent)]
#[derive(Debug, Copy, Clone, Hash, PartialEq, Eq)]
pub struct ucs_config_print_flags_t(pub ::core::ffi::c_uint);
#[repr(transparent)]
#[derive(Debug, Copy, Clone, Hash, PartialEq, Eq)]
pub struct ucp_lib_attr_field(pub ::core::ffi::c_uint);
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct ucp_lib_attr {
    pub field_mask: u64,
    pub max_thread_level: ucs_thread_mode_t,
}
#[repr(transparent)]
#[derive(Debug, Copy, Clone, Hash, PartialEq, Eq)]
pub struct ucp_params_field(pub ::core::ffi::c_uint);
#[repr(transparent)]
#[derive(Debug, Copy, Clone, Hash, PartialEq, Eq)]
pub struct ucp_feature(pub ::core::ffi::c_uint);
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct ucp_params {
    pub field_mask: u64,
    pub features: u64,
}
#[repr(transparent)]
#[derive(Debug, Copy, Clone, Hash, PartialEq, Eq)]
pub struct ucp_context_attr_field(pub ::core::ffi::c_uint);
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct ucp_context_attr {
    pub field_mask: u64,
    pub request_size: usize,
    pub thread_mode: ucs_thread_mode_t,
    pub memory_types: u64,
}
#[repr(transparent)]
#[derive(Debug, Copy, Clone, Hash, PartialEq, Eq)]
pub struct ucs_memory_type(pub ::core::ffi::c_uint);
#[repr(C)]
#[derive(Debug)]
pub struct uct_component {
    _unused: [u8; 0],
}
#[repr(C)]
#[derive(Debug)]
pub struct uct_md {
    _unused: [u8; 0],
}
#[repr(C)]
#[derive(Debug)]
pub struct uct_md_config {
    _unused: [u8; 0],
}
#[repr(transparent)]
#[derive(Debug, Copy, Clone, Hash, PartialEq, Eq)]
pub struct uct_device_type_t(pub ::core::ffi::c_uint);
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct uct_md_resource_desc {
    pub md_name: [::core::ffi::c_char; 16usize],
}
#[repr(transparent)]
#[derive(Debug, Copy, Clone, Hash, PartialEq, Eq)]
pub struct uct_component_attr_field(pub ::core::ffi::c_uint);
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct uct_component_attr {
    pub field_mask: u64,
    pub name: [::core::ffi::c_char; 16usize],
    pub md_resource_count: ::core::ffi::c_uint,
    pub md_resources: *mut uct_md_resource_desc_t,
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct uct_tl_resource_desc {
    pub tl_name: [::core::ffi::c_char; 10usize],
    pub dev_name: [::core::ffi::c_char; 32usize],
    pub dev_type: uct_device_type_t,
    pub sys_device: u8,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of ucp_lib_attr"][::core::mem::size_of::<ucp_lib_attr>() - 16usize];
    ["Alignment of ucp_lib_attr"][::core::mem::align_of::<ucp_lib_attr>() - 8usize];
    [
        "Offset of field: ucp_lib_attr::field_mask",
    ][::core::mem::offset_of!(ucp_lib_attr, field_mask) - 0usize];
    [
        "Offset of field: ucp_lib_attr::max_thread_level",
    ][::core::mem::offset_of!(ucp_lib_attr, max_thread_level) - 8usize];
};
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of ucp_params"][::core::mem::size_of::<ucp_params>() - 16usize];
    ["Alignment of ucp_params"][::core::mem::align_of::<ucp_params>() - 8usize];
    [
        "Offset of field: ucp_params::field_mask",
    ][::core::mem::offset_of!(ucp_params, field_mask) - 0usize];
    [
        "Offset of field: ucp_params::features",
    ][::core::mem::offset_of!(ucp_params, features) - 8usize];
};
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of ucp_context_attr"][::core::mem::size_of::<ucp_context_attr>() - 32usize];
    [
        "Alignment of ucp_context_attr",
    ][::core::mem::align_of::<ucp_context_attr>() - 8usize];
    [
        "Offset of field: ucp_context_attr::field_mask",
    ][::core::mem::offset_of!(ucp_context_attr, field_mask) - 0usize];
    [
        "Offset of field: ucp_context_attr::request_size",
    ][::core::mem::offset_of!(ucp_context_attr, request_size) - 8usize];
    [
        "Offset of field: ucp_context_attr::thread_mode",
    ][::core::mem::offset_of!(ucp_context_attr, thread_mode) - 16usize];
    [
        "Offset of field: ucp_context_attr::memory_types",
    ][::core::mem::offset_of!(ucp_context_attr, memory_types) - 24usize];
};
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    [
        "Size of uct_md_resource_desc",
    ][::core::mem::size_of::<uct_md_resource_desc>() - 16usize];
    [
        "Alignment of uct_md_resource_desc",
    ][::core::mem::align_of::<uct_md_resource_desc>() - 1usize];
    [
        "Offset of field: uct_md_resource_desc::md_name",
    ][::core::mem::offset_of!(uct_md_resource_desc, md_name) - 0usize];
};
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    [
        "Size of uct_component_attr",
    ][::core::mem::size_of::<uct_component_attr>() - 40usize];
    [
        "Alignment of uct_component_attr",
    ][::core::mem::align_of::<uct_component_attr>() - 8usize];
    [
        "Offset of field: uct_component_attr::field_mask",
    ][::core::mem::offset_of!(uct_component_attr, field_mask) - 0usize];
    [
        "Offset of field: uct_component_attr::name",
    ][::core::mem::offset_of!(uct_component_attr, name) - 8usize];
    [
        "Offset of field: uct_component_attr::md_resource_count",
    ][::core::mem::offset_of!(uct_component_attr, md_resource_count) - 24usize];
    [
        "Offset of field: uct_component_attr::md_resources",
    ][::core::mem::offset_of!(uct_component_attr, md_resources) - 32usize];
};
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    [
        "Size of uct_tl_resource_desc",
    ][::core::mem::size_of::<uct_tl_resource_desc>() - 52usize];
    [
        "Alignment of uct_tl_resource_desc",
    ][::core::mem::align_of::<uct_tl_resource_desc>() - 4usize];
    [
        "Offset of field: uct_tl_resource_desc::tl_name",
    ][::core::mem::offset_of!(uct_tl_resource_desc, tl_name) - 0usize];
    [
        "Offset of field: uct_tl_resource_desc::dev_name",
    ][::core::mem::offset_of!(uct_tl_resource_desc, dev_name) - 10usize];
    [
        "Offset of field: uct_tl_resource_desc::dev_type",
    ][::core::mem::offset_of!(uct_tl_resource_desc, dev_type) - 44usize];
    [
        "Offset of field: uct_tl_resource_desc::sys_device",
    ][::core::mem::offset_of!(uct_tl_resource_desc, sys_device) - 48usize];
};
impl ucs_thread_mode_t {
    pub const UCS_THREAD_MODE_SINGLE: ucs_thread_mode_t = ucs_thread_mode_t(0);
    pub const UCS_THREAD_MODE_SERIALIZED: ucs_thread_mode_t = ucs_thread_mode_t(1);
    pub const UCS_THREAD_MODE_MULTI: ucs_thread_mode_t = ucs_thread_mode_t(2);
}
impl ucs_config_print_flags_t {
    pub const UCS_CONFIG_PRINT_CONFIG: ucs_config_print_flags_t = ucs_config_print_flags_t(
        1,
    );
}
impl ucp_lib_attr_field {
    pub const UCP_LIB_ATTR_FIELD_MAX_THREAD_LEVEL: ucp_lib_attr_field = ucp_lib_attr_field(
        1,
    );
}
impl ucp_params_field {
    pub const UCP_PARAM_FIELD_FEATURES: ucp_params_field = ucp_params_field(1);
}
impl ucp_feature {
    pub const UCP_FEATURE_RMA: ucp_feature = ucp_feature(2);
}
impl ucp_context_attr_field {
    pub const UCP_ATTR_FIELD_MEMORY_TYPES: ucp_context_attr_field = ucp_context_attr_field(
        4,
    );
}
impl ucs_memory_type {
    pub const UCS_MEMORY_TYPE_HOST: ucs_memory_type = ucs_memory_type(0);
    pub const UCS_MEMORY_TYPE_CUDA: ucs_memory_type = ucs_memory_type(1);
    pub const UCS_MEMORY_TYPE_CUDA_MANAGED: ucs_memory_type = ucs_memory_type(2);
    pub const UCS_MEMORY_TYPE_ROCM: ucs_memory_type = ucs_memory_type(3);
    pub const UCS_MEMORY_TYPE_ROCM_MANAGED: ucs_memory_type = ucs_memory_type(4);
}
impl uct_device_type_t {
    pub const UCT_DEVICE_TYPE_NET: uct_device_type_t = uct_device_type_t(0);
    pub const UCT_DEVICE_TYPE_SHM: uct_device_type_t = uct_device_type_t(1);
    pub const UCT_DEVICE_TYPE_ACC: uct_device_type_t = uct_device_type_t(2);
    pub const UCT_DEVICE_TYPE_SELF: uct_device_type_t = uct_device_type_t(3);
}
impl uct_component_attr_field {
    pub const UCT_COMPONENT_ATTR_FIELD_NAME: uct_component_attr_field = uct_component_attr_field(
        1,
    );
    pub const UCT_COMPONENT_ATTR_FIELD_MD_RESOURCE_COUNT: uct_component_attr_field = uct_component_attr_field(
        2,
    );
    pub const UCT_COMPONENT_ATTR_FIELD_MD_RESOURCES: uct_component_attr_field = uct_component_attr_field(
        4,
    );
}
table! {
    UcxFunctions
    required {
        ucp_cleanup = "ucp_cleanup": fn(context: ucp_context_h) -> ();
        ucp_config_print = "ucp_config_print": fn(config: *const ucp_config_t, stream: *mut ::core::ffi::c_void, title: *const ::core::ffi::c_char, flags: ucs_config_print_flags_t) -> ();
        ucp_config_read = "ucp_config_read": fn(prefix: *const ::core::ffi::c_char, file: *const ::core::ffi::c_char, config_out: *mut *mut ucp_config_t) -> ucs_status_t;
        ucp_config_release = "ucp_config_release": fn(config: *mut ucp_config_t) -> ();
        ucp_context_query = "ucp_context_query": fn(context: ucp_context_h, attributes: *mut ucp_context_attr_t) -> ucs_status_t;
        ucp_get_version = "ucp_get_version": fn(major: *mut ::core::ffi::c_uint, minor: *mut ::core::ffi::c_uint, release: *mut ::core::ffi::c_uint) -> ();
        ucp_get_version_string = "ucp_get_version_string": fn() -> *const ::core::ffi::c_char;
        ucp_init_version = "ucp_init_version": fn(api_major: ::core::ffi::c_uint, api_minor: ::core::ffi::c_uint, params: *const ucp_params_t, config: *const ucp_config_t, context_out: *mut ucp_context_h) -> ucs_status_t;
        ucp_lib_query = "ucp_lib_query": fn(attributes: *mut ucp_lib_attr_t) -> ucs_status_t;
        ucs_status_string = "ucs_status_string": fn(status: ucs_status_t) -> *const ::core::ffi::c_char;
        uct_component_query = "uct_component_query": fn(component: uct_component_h, attributes: *mut uct_component_attr_t) -> ucs_status_t;
        uct_config_release = "uct_config_release": fn(config: *mut ::core::ffi::c_void) -> ();
        uct_md_close = "uct_md_close": fn(domain: uct_md_h) -> ();
        uct_md_config_read = "uct_md_config_read": fn(component: uct_component_h, prefix: *const ::core::ffi::c_char, file: *const ::core::ffi::c_char, config_out: *mut *mut uct_md_config_t) -> ucs_status_t;
        uct_md_open = "uct_md_open": fn(component: uct_component_h, name: *const ::core::ffi::c_char, config: *const uct_md_config_t, domain_out: *mut uct_md_h) -> ucs_status_t;
        uct_md_query_tl_resources = "uct_md_query_tl_resources": fn(domain: uct_md_h, resources_out: *mut *mut uct_tl_resource_desc_t, count_out: *mut ::core::ffi::c_uint) -> ucs_status_t;
        uct_query_components = "uct_query_components": fn(components_out: *mut *mut uct_component_h, count_out: *mut ::core::ffi::c_uint) -> ucs_status_t;
        uct_release_component_list = "uct_release_component_list": fn(components: *mut uct_component_h) -> ();
        uct_release_tl_resource_list = "uct_release_tl_resource_list": fn(resources: *mut uct_tl_resource_desc_t) -> ();
    }
    optional {
    }
}
