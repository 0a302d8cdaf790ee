/* What crosses the ABI, asserted by the C compiler: sizes, offsets and numbers measured in NIXL 1.5.1 and UCX. */
#include "nixl_capi.h"
#include "ucx.h"

#define SIZE(type, bytes) _Static_assert(sizeof(type) == (bytes), "size of " #type)
#define AT(type, field, bytes) _Static_assert(offsetof(type, field) == (bytes), "offset of " #type "." #field)
#define IS(name, number) _Static_assert((name) == (number), #name)

typedef struct nixl_capi_xfer_telemetry_s telemetry;

SIZE(nixl_capi_agent_config_t, 40);
_Static_assert(_Alignof(nixl_capi_agent_config_t) == 8, "alignment of the configuration");
AT(nixl_capi_agent_config_t, enable_prog_thread, 0);
AT(nixl_capi_agent_config_t, enable_listen_thread, 1);
AT(nixl_capi_agent_config_t, listen_port, 4);
AT(nixl_capi_agent_config_t, thread_sync, 8);
AT(nixl_capi_agent_config_t, num_workers, 12);
AT(nixl_capi_agent_config_t, pthr_delay_us, 16);
AT(nixl_capi_agent_config_t, lthr_delay_us, 24);
AT(nixl_capi_agent_config_t, capture_telemetry, 32);

SIZE(telemetry, 40);
AT(telemetry, start_time_us, 0);
AT(telemetry, post_duration_us, 8);
AT(telemetry, xfer_duration_us, 16);
AT(telemetry, total_bytes, 24);
AT(telemetry, desc_count, 32);

SIZE(bool, 1);
SIZE(nixl_capi_status_t, 4);
SIZE(nixl_capi_mem_type_t, 4);
SIZE(nixl_capi_xfer_op_t, 4);
SIZE(nixl_capi_thread_sync_t, 4);
SIZE(nixl_capi_cost_t, 4);
_Static_assert((nixl_capi_status_t)-1 < (nixl_capi_status_t)0, "a status is signed");

IS(NIXL_CAPI_SUCCESS, 0);
IS(NIXL_CAPI_IN_PROG, 1);
IS(NIXL_CAPI_ERROR_INVALID_PARAM, -1);
IS(NIXL_CAPI_ERROR_BACKEND, -2);
IS(NIXL_CAPI_ERROR_INVALID_STATE, -3);
IS(NIXL_CAPI_ERROR_EXCEPTION, -4);
IS(NIXL_CAPI_ERROR_NO_TELEMETRY, -5);
IS(NIXL_CAPI_ERROR_NOT_FOUND, -6);
IS(NIXL_CAPI_MEM_DRAM, 0);
IS(NIXL_CAPI_MEM_VRAM, 1);
IS(NIXL_CAPI_MEM_BLOCK, 2);
IS(NIXL_CAPI_MEM_OBJECT, 3);
IS(NIXL_CAPI_MEM_FILE, 4);
IS(NIXL_CAPI_MEM_UNKNOWN, 5);
IS(NIXL_CAPI_XFER_OP_READ, 0);
IS(NIXL_CAPI_XFER_OP_WRITE, 1);
IS(NIXL_CAPI_THREAD_SYNC_NONE, 0);
IS(NIXL_CAPI_THREAD_SYNC_STRICT, 1);
IS(NIXL_CAPI_THREAD_SYNC_RW, 2);
IS(NIXL_CAPI_COST_ANALYTICAL_BACKEND, 0);

SIZE(ucs_status_t, 1);
SIZE(ucs_thread_mode_t, 4);
SIZE(ucs_config_print_flags_t, 4);
SIZE(uct_device_type_t, 4);
AT(ucp_lib_attr_t, max_thread_level, 8);
AT(ucp_params_t, features, 8);
AT(ucp_context_attr_t, memory_types, 24);
AT(uct_component_attr_t, name, 8);
AT(uct_component_attr_t, md_resource_count, 24);
AT(uct_component_attr_t, md_resources, 32);
SIZE(uct_md_resource_desc_t, 16);
SIZE(uct_tl_resource_desc_t, 52);
AT(uct_tl_resource_desc_t, dev_name, 10);
AT(uct_tl_resource_desc_t, dev_type, 44);
AT(uct_tl_resource_desc_t, sys_device, 48);

int main(void) { return 0; }
