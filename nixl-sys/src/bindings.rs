// Generated from include/nixl_capi.h by scripts/bindings; do not edit.

pub type nixl_capi_agent_config_t = nixl_capi_agent_config_s;
pub type nixl_capi_xfer_telemetry_t = *mut nixl_capi_xfer_telemetry_s;
pub type nixl_capi_agent_t = *mut nixl_capi_agent_s;
pub type nixl_capi_backend_t = *mut nixl_capi_backend_s;
pub type nixl_capi_mem_list_t = *mut nixl_capi_mem_list_s;
pub type nixl_capi_mem_view_t = *mut nixl_capi_mem_view_s;
pub type nixl_capi_notif_map_t = *mut nixl_capi_notif_map_s;
pub type nixl_capi_opt_args_t = *mut nixl_capi_opt_args_s;
pub type nixl_capi_param_iter_t = *mut nixl_capi_param_iter_s;
pub type nixl_capi_params_t = *mut nixl_capi_params_s;
pub type nixl_capi_query_resp_list_t = *mut nixl_capi_query_resp_list_s;
pub type nixl_capi_reg_dlist_t = *mut nixl_capi_reg_dlist_s;
pub type nixl_capi_remote_dlist_t = *mut nixl_capi_remote_dlist_s;
pub type nixl_capi_string_list_t = *mut nixl_capi_string_list_s;
pub type nixl_capi_xfer_dlist_t = *mut nixl_capi_xfer_dlist_s;
pub type nixl_capi_xfer_dlist_handle_t = *mut nixl_capi_xfer_dlist_handle_s;
pub type nixl_capi_xfer_req_t = *mut nixl_capi_xfer_req_s;
#[repr(transparent)]
#[must_use]
#[derive(Debug, Copy, Clone, Hash, PartialEq, Eq)]
pub struct nixl_capi_status_t(pub ::core::ffi::c_int);
#[repr(transparent)]
#[derive(Debug, Copy, Clone, Hash, PartialEq, Eq)]
pub struct nixl_capi_mem_type_t(pub ::core::ffi::c_uint);
#[repr(transparent)]
#[derive(Debug, Copy, Clone, Hash, PartialEq, Eq)]
pub struct nixl_capi_xfer_op_t(pub ::core::ffi::c_uint);
#[repr(transparent)]
#[derive(Debug, Copy, Clone, Hash, PartialEq, Eq)]
pub struct nixl_capi_thread_sync_t(pub ::core::ffi::c_uint);
#[repr(transparent)]
#[derive(Debug, Copy, Clone, Hash, PartialEq, Eq)]
pub struct nixl_capi_cost_t(pub ::core::ffi::c_uint);
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct nixl_capi_agent_config_s {
    pub enable_prog_thread: bool,
    pub enable_listen_thread: bool,
    pub listen_port: ::core::ffi::c_int,
    pub thread_sync: nixl_capi_thread_sync_t,
    pub num_workers: ::core::ffi::c_uint,
    pub pthr_delay_us: u64,
    pub lthr_delay_us: u64,
    pub capture_telemetry: bool,
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct nixl_capi_xfer_telemetry_s {
    pub start_time_us: u64,
    pub post_duration_us: u64,
    pub xfer_duration_us: u64,
    pub total_bytes: u64,
    pub desc_count: u64,
}
#[repr(C)]
#[derive(Debug)]
pub struct nixl_capi_agent_s {
    _unused: [u8; 0],
}
#[repr(C)]
#[derive(Debug)]
pub struct nixl_capi_backend_s {
    _unused: [u8; 0],
}
#[repr(C)]
#[derive(Debug)]
pub struct nixl_capi_mem_list_s {
    _unused: [u8; 0],
}
#[repr(C)]
#[derive(Debug)]
pub struct nixl_capi_mem_view_s {
    _unused: [u8; 0],
}
#[repr(C)]
#[derive(Debug)]
pub struct nixl_capi_notif_map_s {
    _unused: [u8; 0],
}
#[repr(C)]
#[derive(Debug)]
pub struct nixl_capi_opt_args_s {
    _unused: [u8; 0],
}
#[repr(C)]
#[derive(Debug)]
pub struct nixl_capi_param_iter_s {
    _unused: [u8; 0],
}
#[repr(C)]
#[derive(Debug)]
pub struct nixl_capi_params_s {
    _unused: [u8; 0],
}
#[repr(C)]
#[derive(Debug)]
pub struct nixl_capi_query_resp_list_s {
    _unused: [u8; 0],
}
#[repr(C)]
#[derive(Debug)]
pub struct nixl_capi_reg_dlist_s {
    _unused: [u8; 0],
}
#[repr(C)]
#[derive(Debug)]
pub struct nixl_capi_remote_dlist_s {
    _unused: [u8; 0],
}
#[repr(C)]
#[derive(Debug)]
pub struct nixl_capi_string_list_s {
    _unused: [u8; 0],
}
#[repr(C)]
#[derive(Debug)]
pub struct nixl_capi_xfer_dlist_s {
    _unused: [u8; 0],
}
#[repr(C)]
#[derive(Debug)]
pub struct nixl_capi_xfer_dlist_handle_s {
    _unused: [u8; 0],
}
#[repr(C)]
#[derive(Debug)]
pub struct nixl_capi_xfer_req_s {
    _unused: [u8; 0],
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    [
        "Size of nixl_capi_agent_config_s",
    ][::core::mem::size_of::<nixl_capi_agent_config_s>() - 40usize];
    [
        "Alignment of nixl_capi_agent_config_s",
    ][::core::mem::align_of::<nixl_capi_agent_config_s>() - 8usize];
    [
        "Offset of field: nixl_capi_agent_config_s::enable_prog_thread",
    ][::core::mem::offset_of!(nixl_capi_agent_config_s, enable_prog_thread) - 0usize];
    [
        "Offset of field: nixl_capi_agent_config_s::enable_listen_thread",
    ][::core::mem::offset_of!(nixl_capi_agent_config_s, enable_listen_thread) - 1usize];
    [
        "Offset of field: nixl_capi_agent_config_s::listen_port",
    ][::core::mem::offset_of!(nixl_capi_agent_config_s, listen_port) - 4usize];
    [
        "Offset of field: nixl_capi_agent_config_s::thread_sync",
    ][::core::mem::offset_of!(nixl_capi_agent_config_s, thread_sync) - 8usize];
    [
        "Offset of field: nixl_capi_agent_config_s::num_workers",
    ][::core::mem::offset_of!(nixl_capi_agent_config_s, num_workers) - 12usize];
    [
        "Offset of field: nixl_capi_agent_config_s::pthr_delay_us",
    ][::core::mem::offset_of!(nixl_capi_agent_config_s, pthr_delay_us) - 16usize];
    [
        "Offset of field: nixl_capi_agent_config_s::lthr_delay_us",
    ][::core::mem::offset_of!(nixl_capi_agent_config_s, lthr_delay_us) - 24usize];
    [
        "Offset of field: nixl_capi_agent_config_s::capture_telemetry",
    ][::core::mem::offset_of!(nixl_capi_agent_config_s, capture_telemetry) - 32usize];
};
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    [
        "Size of nixl_capi_xfer_telemetry_s",
    ][::core::mem::size_of::<nixl_capi_xfer_telemetry_s>() - 40usize];
    [
        "Alignment of nixl_capi_xfer_telemetry_s",
    ][::core::mem::align_of::<nixl_capi_xfer_telemetry_s>() - 8usize];
    [
        "Offset of field: nixl_capi_xfer_telemetry_s::start_time_us",
    ][::core::mem::offset_of!(nixl_capi_xfer_telemetry_s, start_time_us) - 0usize];
    [
        "Offset of field: nixl_capi_xfer_telemetry_s::post_duration_us",
    ][::core::mem::offset_of!(nixl_capi_xfer_telemetry_s, post_duration_us) - 8usize];
    [
        "Offset of field: nixl_capi_xfer_telemetry_s::xfer_duration_us",
    ][::core::mem::offset_of!(nixl_capi_xfer_telemetry_s, xfer_duration_us) - 16usize];
    [
        "Offset of field: nixl_capi_xfer_telemetry_s::total_bytes",
    ][::core::mem::offset_of!(nixl_capi_xfer_telemetry_s, total_bytes) - 24usize];
    [
        "Offset of field: nixl_capi_xfer_telemetry_s::desc_count",
    ][::core::mem::offset_of!(nixl_capi_xfer_telemetry_s, desc_count) - 32usize];
};
impl nixl_capi_status_t {
    pub const NIXL_CAPI_ERROR_NOT_FOUND: nixl_capi_status_t = nixl_capi_status_t(-6);
    pub const NIXL_CAPI_ERROR_NO_TELEMETRY: nixl_capi_status_t = nixl_capi_status_t(-5);
    pub const NIXL_CAPI_ERROR_EXCEPTION: nixl_capi_status_t = nixl_capi_status_t(-4);
    pub const NIXL_CAPI_ERROR_INVALID_STATE: nixl_capi_status_t = nixl_capi_status_t(-3);
    pub const NIXL_CAPI_ERROR_BACKEND: nixl_capi_status_t = nixl_capi_status_t(-2);
    pub const NIXL_CAPI_ERROR_INVALID_PARAM: nixl_capi_status_t = nixl_capi_status_t(-1);
    pub const NIXL_CAPI_SUCCESS: nixl_capi_status_t = nixl_capi_status_t(0);
    pub const NIXL_CAPI_IN_PROG: nixl_capi_status_t = nixl_capi_status_t(1);
}
impl nixl_capi_mem_type_t {
    pub const NIXL_CAPI_MEM_DRAM: nixl_capi_mem_type_t = nixl_capi_mem_type_t(0);
    pub const NIXL_CAPI_MEM_VRAM: nixl_capi_mem_type_t = nixl_capi_mem_type_t(1);
    pub const NIXL_CAPI_MEM_BLOCK: nixl_capi_mem_type_t = nixl_capi_mem_type_t(2);
    pub const NIXL_CAPI_MEM_OBJECT: nixl_capi_mem_type_t = nixl_capi_mem_type_t(3);
    pub const NIXL_CAPI_MEM_FILE: nixl_capi_mem_type_t = nixl_capi_mem_type_t(4);
    pub const NIXL_CAPI_MEM_UNKNOWN: nixl_capi_mem_type_t = nixl_capi_mem_type_t(5);
}
impl nixl_capi_xfer_op_t {
    pub const NIXL_CAPI_XFER_OP_READ: nixl_capi_xfer_op_t = nixl_capi_xfer_op_t(0);
    pub const NIXL_CAPI_XFER_OP_WRITE: nixl_capi_xfer_op_t = nixl_capi_xfer_op_t(1);
}
impl nixl_capi_thread_sync_t {
    pub const NIXL_CAPI_THREAD_SYNC_NONE: nixl_capi_thread_sync_t = nixl_capi_thread_sync_t(
        0,
    );
    pub const NIXL_CAPI_THREAD_SYNC_STRICT: nixl_capi_thread_sync_t = nixl_capi_thread_sync_t(
        1,
    );
    pub const NIXL_CAPI_THREAD_SYNC_RW: nixl_capi_thread_sync_t = nixl_capi_thread_sync_t(
        2,
    );
}
impl nixl_capi_cost_t {
    pub const NIXL_CAPI_COST_ANALYTICAL_BACKEND: nixl_capi_cost_t = nixl_capi_cost_t(0);
}
table! {
    Functions
    required {
        agent_make_connection = "nixl_capi_agent_make_connection": fn(agent: nixl_capi_agent_t, peer: *const ::core::ffi::c_char, options: nixl_capi_opt_args_t) -> nixl_capi_status_t;
        check_remote_md = "nixl_capi_check_remote_md": fn(agent: nixl_capi_agent_t, peer: *const ::core::ffi::c_char, list: nixl_capi_xfer_dlist_t) -> nixl_capi_status_t;
        create_agent = "nixl_capi_create_agent": fn(name: *const ::core::ffi::c_char, agent_out: *mut nixl_capi_agent_t) -> nixl_capi_status_t;
        create_backend = "nixl_capi_create_backend": fn(agent: nixl_capi_agent_t, plugin: *const ::core::ffi::c_char, params: nixl_capi_params_t, backend_out: *mut nixl_capi_backend_t) -> nixl_capi_status_t;
        create_configured_agent = "nixl_capi_create_configured_agent": fn(name: *const ::core::ffi::c_char, config: *const nixl_capi_agent_config_t, agent_out: *mut nixl_capi_agent_t) -> nixl_capi_status_t;
        create_notif_map = "nixl_capi_create_notif_map": fn(map_out: *mut nixl_capi_notif_map_t) -> nixl_capi_status_t;
        create_opt_args = "nixl_capi_create_opt_args": fn(options_out: *mut nixl_capi_opt_args_t) -> nixl_capi_status_t;
        create_params = "nixl_capi_create_params": fn(params_out: *mut nixl_capi_params_t) -> nixl_capi_status_t;
        create_query_resp_list = "nixl_capi_create_query_resp_list": fn(list_out: *mut nixl_capi_query_resp_list_t) -> nixl_capi_status_t;
        create_reg_dlist = "nixl_capi_create_reg_dlist": fn(type_: nixl_capi_mem_type_t, list_out: *mut nixl_capi_reg_dlist_t) -> nixl_capi_status_t;
        create_xfer_dlist = "nixl_capi_create_xfer_dlist": fn(type_: nixl_capi_mem_type_t, list_out: *mut nixl_capi_xfer_dlist_t) -> nixl_capi_status_t;
        create_xfer_req = "nixl_capi_create_xfer_req": fn(agent: nixl_capi_agent_t, operation: nixl_capi_xfer_op_t, local: nixl_capi_xfer_dlist_t, remote: nixl_capi_xfer_dlist_t, peer: *const ::core::ffi::c_char, request_out: *mut nixl_capi_xfer_req_t, options: nixl_capi_opt_args_t) -> nixl_capi_status_t;
        deregister_mem = "nixl_capi_deregister_mem": fn(agent: nixl_capi_agent_t, list: nixl_capi_reg_dlist_t, options: nixl_capi_opt_args_t) -> nixl_capi_status_t;
        destroy_agent = "nixl_capi_destroy_agent": fn(agent: nixl_capi_agent_t) -> nixl_capi_status_t;
        destroy_backend = "nixl_capi_destroy_backend": fn(backend: nixl_capi_backend_t) -> nixl_capi_status_t;
        destroy_mem_list = "nixl_capi_destroy_mem_list": fn(list: nixl_capi_mem_list_t) -> nixl_capi_status_t;
        destroy_notif_map = "nixl_capi_destroy_notif_map": fn(map: nixl_capi_notif_map_t) -> nixl_capi_status_t;
        destroy_opt_args = "nixl_capi_destroy_opt_args": fn(options: nixl_capi_opt_args_t) -> nixl_capi_status_t;
        destroy_params = "nixl_capi_destroy_params": fn(params: nixl_capi_params_t) -> nixl_capi_status_t;
        destroy_query_resp_list = "nixl_capi_destroy_query_resp_list": fn(list: nixl_capi_query_resp_list_t) -> nixl_capi_status_t;
        destroy_reg_dlist = "nixl_capi_destroy_reg_dlist": fn(list: nixl_capi_reg_dlist_t) -> nixl_capi_status_t;
        destroy_string_list = "nixl_capi_destroy_string_list": fn(list: nixl_capi_string_list_t) -> nixl_capi_status_t;
        destroy_xfer_dlist = "nixl_capi_destroy_xfer_dlist": fn(list: nixl_capi_xfer_dlist_t) -> nixl_capi_status_t;
        destroy_xfer_req = "nixl_capi_destroy_xfer_req": fn(request: nixl_capi_xfer_req_t) -> nixl_capi_status_t;
        estimate_xfer_cost = "nixl_capi_estimate_xfer_cost": fn(agent: nixl_capi_agent_t, request: nixl_capi_xfer_req_t, options: nixl_capi_opt_args_t, microseconds_out: *mut i64, error_margin_out: *mut i64, method_out: *mut nixl_capi_cost_t) -> nixl_capi_status_t;
        fetch_remote_md = "nixl_capi_fetch_remote_md": fn(agent: nixl_capi_agent_t, peer: *const ::core::ffi::c_char, options: nixl_capi_opt_args_t) -> nixl_capi_status_t;
        gen_notif = "nixl_capi_gen_notif": fn(agent: nixl_capi_agent_t, peer: *const ::core::ffi::c_char, bytes: *const ::core::ffi::c_void, length: usize, options: nixl_capi_opt_args_t) -> nixl_capi_status_t;
        get_available_plugins = "nixl_capi_get_available_plugins": fn(agent: nixl_capi_agent_t, names_out: *mut nixl_capi_string_list_t) -> nixl_capi_status_t;
        get_backend_params = "nixl_capi_get_backend_params": fn(agent: nixl_capi_agent_t, backend: nixl_capi_backend_t, mems_out: *mut nixl_capi_mem_list_t, params_out: *mut nixl_capi_params_t) -> nixl_capi_status_t;
        get_local_md = "nixl_capi_get_local_md": fn(agent: nixl_capi_agent_t, bytes_out: *mut *mut ::core::ffi::c_void, length_out: *mut usize) -> nixl_capi_status_t;
        get_local_partial_md = "nixl_capi_get_local_partial_md": fn(agent: nixl_capi_agent_t, list: nixl_capi_reg_dlist_t, bytes_out: *mut *mut ::core::ffi::c_void, length_out: *mut usize, options: nixl_capi_opt_args_t) -> nixl_capi_status_t;
        get_notifs = "nixl_capi_get_notifs": fn(agent: nixl_capi_agent_t, map: nixl_capi_notif_map_t, options: nixl_capi_opt_args_t) -> nixl_capi_status_t;
        get_plugin_params = "nixl_capi_get_plugin_params": fn(agent: nixl_capi_agent_t, plugin: *const ::core::ffi::c_char, mems_out: *mut nixl_capi_mem_list_t, params_out: *mut nixl_capi_params_t) -> nixl_capi_status_t;
        get_xfer_status = "nixl_capi_get_xfer_status": fn(agent: nixl_capi_agent_t, request: nixl_capi_xfer_req_t) -> nixl_capi_status_t;
        get_xfer_telemetry = "nixl_capi_get_xfer_telemetry": fn(agent: nixl_capi_agent_t, request: nixl_capi_xfer_req_t, telemetry_out: nixl_capi_xfer_telemetry_t) -> nixl_capi_status_t;
        invalidate_local_md = "nixl_capi_invalidate_local_md": fn(agent: nixl_capi_agent_t, options: nixl_capi_opt_args_t) -> nixl_capi_status_t;
        invalidate_remote_md = "nixl_capi_invalidate_remote_md": fn(agent: nixl_capi_agent_t, peer: *const ::core::ffi::c_char) -> nixl_capi_status_t;
        is_stub = "nixl_capi_is_stub": fn() -> bool;
        load_remote_md = "nixl_capi_load_remote_md": fn(agent: nixl_capi_agent_t, bytes: *const ::core::ffi::c_void, length: usize, name_out: *mut *mut ::core::ffi::c_char) -> nixl_capi_status_t;
        make_xfer_req = "nixl_capi_make_xfer_req": fn(agent: nixl_capi_agent_t, operation: nixl_capi_xfer_op_t, local: nixl_capi_xfer_dlist_handle_t, local_indices: *const ::core::ffi::c_int, local_count: usize, remote: nixl_capi_xfer_dlist_handle_t, remote_indices: *const ::core::ffi::c_int, remote_count: usize, request_out: *mut nixl_capi_xfer_req_t, options: nixl_capi_opt_args_t) -> nixl_capi_status_t;
        mem_list_get = "nixl_capi_mem_list_get": fn(list: nixl_capi_mem_list_t, index: usize, type_out: *mut nixl_capi_mem_type_t) -> nixl_capi_status_t;
        mem_list_is_empty = "nixl_capi_mem_list_is_empty": fn(list: nixl_capi_mem_list_t, empty_out: *mut bool) -> nixl_capi_status_t;
        mem_list_size = "nixl_capi_mem_list_size": fn(list: nixl_capi_mem_list_t, size_out: *mut usize) -> nixl_capi_status_t;
        mem_type_to_string = "nixl_capi_mem_type_to_string": fn(type_: nixl_capi_mem_type_t, string_out: *mut *const ::core::ffi::c_char) -> nixl_capi_status_t;
        notif_map_clear = "nixl_capi_notif_map_clear": fn(map: nixl_capi_notif_map_t) -> nixl_capi_status_t;
        notif_map_get_agent_at = "nixl_capi_notif_map_get_agent_at": fn(map: nixl_capi_notif_map_t, index: usize, peer_out: *mut *const ::core::ffi::c_char) -> nixl_capi_status_t;
        notif_map_get_notif = "nixl_capi_notif_map_get_notif": fn(map: nixl_capi_notif_map_t, peer: *const ::core::ffi::c_char, index: usize, bytes_out: *mut *const ::core::ffi::c_void, length_out: *mut usize) -> nixl_capi_status_t;
        notif_map_get_notifs_size = "nixl_capi_notif_map_get_notifs_size": fn(map: nixl_capi_notif_map_t, peer: *const ::core::ffi::c_char, size_out: *mut usize) -> nixl_capi_status_t;
        notif_map_size = "nixl_capi_notif_map_size": fn(map: nixl_capi_notif_map_t, peers_out: *mut usize) -> nixl_capi_status_t;
        opt_args_add_backend = "nixl_capi_opt_args_add_backend": fn(options: nixl_capi_opt_args_t, backend: nixl_capi_backend_t) -> nixl_capi_status_t;
        opt_args_get_has_notif = "nixl_capi_opt_args_get_has_notif": fn(options: nixl_capi_opt_args_t, has_notification_out: *mut bool) -> nixl_capi_status_t;
        opt_args_get_notif_msg = "nixl_capi_opt_args_get_notif_msg": fn(options: nixl_capi_opt_args_t, bytes_out: *mut *mut ::core::ffi::c_void, length_out: *mut usize) -> nixl_capi_status_t;
        opt_args_get_skip_desc_merge = "nixl_capi_opt_args_get_skip_desc_merge": fn(options: nixl_capi_opt_args_t, skip_out: *mut bool) -> nixl_capi_status_t;
        opt_args_set_has_notif = "nixl_capi_opt_args_set_has_notif": fn(options: nixl_capi_opt_args_t, has_notification: bool) -> nixl_capi_status_t;
        opt_args_set_ip_addr = "nixl_capi_opt_args_set_ip_addr": fn(options: nixl_capi_opt_args_t, address: *const ::core::ffi::c_char) -> nixl_capi_status_t;
        opt_args_set_notif_msg = "nixl_capi_opt_args_set_notif_msg": fn(options: nixl_capi_opt_args_t, bytes: *const ::core::ffi::c_void, length: usize) -> nixl_capi_status_t;
        opt_args_set_port = "nixl_capi_opt_args_set_port": fn(options: nixl_capi_opt_args_t, port: u16) -> nixl_capi_status_t;
        opt_args_set_skip_desc_merge = "nixl_capi_opt_args_set_skip_desc_merge": fn(options: nixl_capi_opt_args_t, skip: bool) -> nixl_capi_status_t;
        params_add = "nixl_capi_params_add": fn(params: nixl_capi_params_t, key: *const ::core::ffi::c_char, value: *const ::core::ffi::c_char) -> nixl_capi_status_t;
        params_create_iterator = "nixl_capi_params_create_iterator": fn(params: nixl_capi_params_t, iterator_out: *mut nixl_capi_param_iter_t) -> nixl_capi_status_t;
        params_destroy_iterator = "nixl_capi_params_destroy_iterator": fn(iterator: nixl_capi_param_iter_t) -> nixl_capi_status_t;
        params_is_empty = "nixl_capi_params_is_empty": fn(params: nixl_capi_params_t, empty_out: *mut bool) -> nixl_capi_status_t;
        params_iterator_next = "nixl_capi_params_iterator_next": fn(iterator: nixl_capi_param_iter_t, key_out: *mut *const ::core::ffi::c_char, value_out: *mut *const ::core::ffi::c_char, more_out: *mut bool) -> nixl_capi_status_t;
        post_xfer_req = "nixl_capi_post_xfer_req": fn(agent: nixl_capi_agent_t, request: nixl_capi_xfer_req_t, options: nixl_capi_opt_args_t) -> nixl_capi_status_t;
        prep_xfer_dlist = "nixl_capi_prep_xfer_dlist": fn(agent: nixl_capi_agent_t, peer: *const ::core::ffi::c_char, list: nixl_capi_xfer_dlist_t, prepared_out: *mut nixl_capi_xfer_dlist_handle_t, options: nixl_capi_opt_args_t) -> nixl_capi_status_t;
        query_mem = "nixl_capi_query_mem": fn(agent: nixl_capi_agent_t, list: nixl_capi_reg_dlist_t, answer: nixl_capi_query_resp_list_t, options: nixl_capi_opt_args_t) -> nixl_capi_status_t;
        query_resp_list_get_params = "nixl_capi_query_resp_list_get_params": fn(list: nixl_capi_query_resp_list_t, index: usize, params_out: *mut nixl_capi_params_t) -> nixl_capi_status_t;
        query_resp_list_has_value = "nixl_capi_query_resp_list_has_value": fn(list: nixl_capi_query_resp_list_t, index: usize, has_value_out: *mut bool) -> nixl_capi_status_t;
        query_resp_list_size = "nixl_capi_query_resp_list_size": fn(list: nixl_capi_query_resp_list_t, size_out: *mut usize) -> nixl_capi_status_t;
        query_xfer_backend = "nixl_capi_query_xfer_backend": fn(agent: nixl_capi_agent_t, request: nixl_capi_xfer_req_t, backend_out: *mut nixl_capi_backend_t) -> nixl_capi_status_t;
        reg_dlist_add_desc = "nixl_capi_reg_dlist_add_desc": fn(list: nixl_capi_reg_dlist_t, address: usize, length: usize, device: u64, metadata: *const ::core::ffi::c_void, metadata_length: usize) -> nixl_capi_status_t;
        reg_dlist_clear = "nixl_capi_reg_dlist_clear": fn(list: nixl_capi_reg_dlist_t) -> nixl_capi_status_t;
        reg_dlist_desc_count = "nixl_capi_reg_dlist_desc_count": fn(list: nixl_capi_reg_dlist_t, count_out: *mut usize) -> nixl_capi_status_t;
        reg_dlist_get_type = "nixl_capi_reg_dlist_get_type": fn(list: nixl_capi_reg_dlist_t, type_out: *mut nixl_capi_mem_type_t) -> nixl_capi_status_t;
        reg_dlist_is_empty = "nixl_capi_reg_dlist_is_empty": fn(list: nixl_capi_reg_dlist_t, empty_out: *mut bool) -> nixl_capi_status_t;
        reg_dlist_print = "nixl_capi_reg_dlist_print": fn(list: nixl_capi_reg_dlist_t) -> nixl_capi_status_t;
        reg_dlist_rem_desc = "nixl_capi_reg_dlist_rem_desc": fn(list: nixl_capi_reg_dlist_t, index: ::core::ffi::c_int) -> nixl_capi_status_t;
        reg_dlist_resize = "nixl_capi_reg_dlist_resize": fn(list: nixl_capi_reg_dlist_t, count: usize) -> nixl_capi_status_t;
        reg_dlist_trim = "nixl_capi_reg_dlist_trim": fn(list: nixl_capi_reg_dlist_t) -> nixl_capi_status_t;
        register_mem = "nixl_capi_register_mem": fn(agent: nixl_capi_agent_t, list: nixl_capi_reg_dlist_t, options: nixl_capi_opt_args_t) -> nixl_capi_status_t;
        release_xfer_dlist_handle = "nixl_capi_release_xfer_dlist_handle": fn(agent: nixl_capi_agent_t, prepared: nixl_capi_xfer_dlist_handle_t) -> nixl_capi_status_t;
        release_xfer_req = "nixl_capi_release_xfer_req": fn(agent: nixl_capi_agent_t, request: nixl_capi_xfer_req_t) -> nixl_capi_status_t;
        send_local_md = "nixl_capi_send_local_md": fn(agent: nixl_capi_agent_t, options: nixl_capi_opt_args_t) -> nixl_capi_status_t;
        send_local_partial_md = "nixl_capi_send_local_partial_md": fn(agent: nixl_capi_agent_t, list: nixl_capi_reg_dlist_t, options: nixl_capi_opt_args_t) -> nixl_capi_status_t;
        string_list_get = "nixl_capi_string_list_get": fn(list: nixl_capi_string_list_t, index: usize, string_out: *mut *const ::core::ffi::c_char) -> nixl_capi_status_t;
        string_list_size = "nixl_capi_string_list_size": fn(list: nixl_capi_string_list_t, size_out: *mut usize) -> nixl_capi_status_t;
        xfer_dlist_add_desc = "nixl_capi_xfer_dlist_add_desc": fn(list: nixl_capi_xfer_dlist_t, address: usize, length: usize, device: u64) -> nixl_capi_status_t;
        xfer_dlist_clear = "nixl_capi_xfer_dlist_clear": fn(list: nixl_capi_xfer_dlist_t) -> nixl_capi_status_t;
        xfer_dlist_desc_count = "nixl_capi_xfer_dlist_desc_count": fn(list: nixl_capi_xfer_dlist_t, count_out: *mut usize) -> nixl_capi_status_t;
        xfer_dlist_get_type = "nixl_capi_xfer_dlist_get_type": fn(list: nixl_capi_xfer_dlist_t, type_out: *mut nixl_capi_mem_type_t) -> nixl_capi_status_t;
        xfer_dlist_is_empty = "nixl_capi_xfer_dlist_is_empty": fn(list: nixl_capi_xfer_dlist_t, empty_out: *mut bool) -> nixl_capi_status_t;
        xfer_dlist_len = "nixl_capi_xfer_dlist_len": fn(list: nixl_capi_xfer_dlist_t, length_out: *mut usize) -> nixl_capi_status_t;
        xfer_dlist_print = "nixl_capi_xfer_dlist_print": fn(list: nixl_capi_xfer_dlist_t) -> nixl_capi_status_t;
        xfer_dlist_rem_desc = "nixl_capi_xfer_dlist_rem_desc": fn(list: nixl_capi_xfer_dlist_t, index: ::core::ffi::c_int) -> nixl_capi_status_t;
        xfer_dlist_resize = "nixl_capi_xfer_dlist_resize": fn(list: nixl_capi_xfer_dlist_t, count: usize) -> nixl_capi_status_t;
        xfer_dlist_trim = "nixl_capi_xfer_dlist_trim": fn(list: nixl_capi_xfer_dlist_t) -> nixl_capi_status_t;
    }
    optional {
        create_remote_dlist = "nixl_capi_create_remote_dlist": fn(type_: nixl_capi_mem_type_t, list_out: *mut nixl_capi_remote_dlist_t) -> nixl_capi_status_t;
        destroy_remote_dlist = "nixl_capi_destroy_remote_dlist": fn(list: nixl_capi_remote_dlist_t) -> nixl_capi_status_t;
        opt_args_get_custom_param = "nixl_capi_opt_args_get_custom_param": fn(options: nixl_capi_opt_args_t, bytes_out: *mut *mut ::core::ffi::c_void, length_out: *mut usize) -> nixl_capi_status_t;
        opt_args_set_custom_param = "nixl_capi_opt_args_set_custom_param": fn(options: nixl_capi_opt_args_t, bytes: *const ::core::ffi::c_void, length: usize) -> nixl_capi_status_t;
        prep_mem_view_local = "nixl_capi_prep_mem_view_local": fn(agent: nixl_capi_agent_t, list: nixl_capi_xfer_dlist_t, view_out: *mut nixl_capi_mem_view_t, options: nixl_capi_opt_args_t) -> nixl_capi_status_t;
        prep_mem_view_remote = "nixl_capi_prep_mem_view_remote": fn(agent: nixl_capi_agent_t, list: nixl_capi_remote_dlist_t, view_out: *mut nixl_capi_mem_view_t, options: nixl_capi_opt_args_t) -> nixl_capi_status_t;
        release_mem_view = "nixl_capi_release_mem_view": fn(agent: nixl_capi_agent_t, view: nixl_capi_mem_view_t) -> nixl_capi_status_t;
        remote_dlist_add_desc = "nixl_capi_remote_dlist_add_desc": fn(list: nixl_capi_remote_dlist_t, address: usize, length: usize, device: u64, peer: *const ::core::ffi::c_char) -> nixl_capi_status_t;
    }
}
