/*
 * The C ABI of libnixl_capi.so as kvgate calls it.
 *
 * Written for kvgate from measured facts: exported names, struct layouts and enum values of NIXL 0.9 to 1.5.
 * It is not NVIDIA's header. tests/layout.c asserts the layouts, tests/real_library.rs the set of names.
 *
 * Every function that answers nixl_capi_status_t takes non-null pointers unless a parameter is marked OPTIONAL, and
 * catches C++ exceptions (they come back as NIXL_CAPI_ERROR_BACKEND). Handles are opaque and not checked.
 */
#ifndef KVGATE_NIXL_CAPI_H
#define KVGATE_NIXL_CAPI_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* May be NULL. */
#define OPTIONAL

#ifdef __cplusplus
extern "C" {
#endif

/* ---- numbers ---------------------------------------------------------------------------------------------------- */

/* Not the numbers of the C++ nixl_status_t. A newer library may answer others. */
typedef enum {
    NIXL_CAPI_ERROR_NOT_FOUND = -6, /* since 1.5; older libraries answer ERROR_BACKEND */
    NIXL_CAPI_ERROR_NO_TELEMETRY = -5,
    NIXL_CAPI_ERROR_EXCEPTION = -4,     /* never seen */
    NIXL_CAPI_ERROR_INVALID_STATE = -3, /* destroy_xfer_req of a request that was not released */
    NIXL_CAPI_ERROR_BACKEND = -2,       /* everything else, cancelled and disconnected included */
    NIXL_CAPI_ERROR_INVALID_PARAM = -1,
    NIXL_CAPI_SUCCESS = 0,
    NIXL_CAPI_IN_PROG = 1
} nixl_capi_status_t;

typedef enum {
    NIXL_CAPI_MEM_DRAM = 0,
    NIXL_CAPI_MEM_VRAM = 1,
    NIXL_CAPI_MEM_BLOCK = 2,
    NIXL_CAPI_MEM_OBJECT = 3,
    NIXL_CAPI_MEM_FILE = 4,
    NIXL_CAPI_MEM_UNKNOWN = 5 /* has no C++ counterpart and is cast unchecked: never pass it in */
} nixl_capi_mem_type_t;

typedef enum { NIXL_CAPI_XFER_OP_READ = 0, NIXL_CAPI_XFER_OP_WRITE = 1 } nixl_capi_xfer_op_t;

typedef enum {
    NIXL_CAPI_THREAD_SYNC_NONE = 0, /* crashes when two threads use one agent */
    NIXL_CAPI_THREAD_SYNC_STRICT = 1,
    NIXL_CAPI_THREAD_SYNC_RW = 2
} nixl_capi_thread_sync_t;

typedef enum { NIXL_CAPI_COST_ANALYTICAL_BACKEND = 0 } nixl_capi_cost_t;

/* ---- structs: 40 bytes each, aligned to 8 ------------------------------------------------------------------------ */

typedef struct nixl_capi_agent_config_s {
    bool enable_prog_thread;
    bool enable_listen_thread;
    int listen_port;
    nixl_capi_thread_sync_t thread_sync;
    unsigned int num_workers; /* ignored by NIXL: set the backend parameter "num_workers" */
    uint64_t pthr_delay_us;   /* 0 spins a whole core */
    uint64_t lthr_delay_us;
    bool capture_telemetry;
} nixl_capi_agent_config_t;

typedef struct nixl_capi_xfer_telemetry_s {
    uint64_t start_time_us; /* steady clock, not the epoch */
    uint64_t post_duration_us;
    uint64_t xfer_duration_us;
    uint64_t total_bytes;
    uint64_t desc_count;
} *nixl_capi_xfer_telemetry_t;

/* ---- opaque handles ---------------------------------------------------------------------------------------------- */

typedef struct nixl_capi_agent_s *nixl_capi_agent_t;
typedef struct nixl_capi_backend_s *nixl_capi_backend_t;
typedef struct nixl_capi_mem_list_s *nixl_capi_mem_list_t;
typedef struct nixl_capi_mem_view_s *nixl_capi_mem_view_t;
typedef struct nixl_capi_notif_map_s *nixl_capi_notif_map_t;
typedef struct nixl_capi_opt_args_s *nixl_capi_opt_args_t;
typedef struct nixl_capi_param_iter_s *nixl_capi_param_iter_t;
typedef struct nixl_capi_params_s *nixl_capi_params_t;
typedef struct nixl_capi_query_resp_list_s *nixl_capi_query_resp_list_t;
typedef struct nixl_capi_reg_dlist_s *nixl_capi_reg_dlist_t;
typedef struct nixl_capi_remote_dlist_s *nixl_capi_remote_dlist_t;
typedef struct nixl_capi_string_list_s *nixl_capi_string_list_t;
typedef struct nixl_capi_xfer_dlist_s *nixl_capi_xfer_dlist_t;
typedef struct nixl_capi_xfer_dlist_handle_s *nixl_capi_xfer_dlist_handle_t;
typedef struct nixl_capi_xfer_req_s *nixl_capi_xfer_req_t;

/* ---- the library ------------------------------------------------------------------------------------------------- */

/* true: a forwarding stub that found no real library behind it */
bool nixl_capi_is_stub(void);

/* ---- agents ------------------------------------------------------------------------------------------------------ */

nixl_capi_status_t nixl_capi_create_agent(const char *name, nixl_capi_agent_t *agent_out);
nixl_capi_status_t nixl_capi_create_configured_agent(const char *name, const nixl_capi_agent_config_t *config,
                                                     nixl_capi_agent_t *agent_out);
/* Joins the backends' threads; every other handle of the agent dangles afterwards. */
nixl_capi_status_t nixl_capi_destroy_agent(nixl_capi_agent_t agent);
nixl_capi_status_t nixl_capi_agent_make_connection(nixl_capi_agent_t agent, const char *peer,
                                                   OPTIONAL nixl_capi_opt_args_t options);

/* ---- plugins and backends ---------------------------------------------------------------------------------------- */

nixl_capi_status_t nixl_capi_get_available_plugins(nixl_capi_agent_t agent, nixl_capi_string_list_t *names_out);
nixl_capi_status_t nixl_capi_get_plugin_params(nixl_capi_agent_t agent, const char *plugin,
                                               nixl_capi_mem_list_t *mems_out, nixl_capi_params_t *params_out);
nixl_capi_status_t nixl_capi_create_backend(nixl_capi_agent_t agent, const char *plugin, nixl_capi_params_t params,
                                            nixl_capi_backend_t *backend_out);
nixl_capi_status_t nixl_capi_get_backend_params(nixl_capi_agent_t agent, nixl_capi_backend_t backend,
                                                nixl_capi_mem_list_t *mems_out, nixl_capi_params_t *params_out);
/* Frees the handle only: the engine lives as long as its agent. */
nixl_capi_status_t nixl_capi_destroy_backend(nixl_capi_backend_t backend);

/* ---- lists of strings and of memory types (read only) ------------------------------------------------------------ */

nixl_capi_status_t nixl_capi_string_list_size(nixl_capi_string_list_t list, size_t *size_out);
/* Borrowed from the list. */
nixl_capi_status_t nixl_capi_string_list_get(nixl_capi_string_list_t list, size_t index, const char **string_out);
nixl_capi_status_t nixl_capi_destroy_string_list(nixl_capi_string_list_t list);

nixl_capi_status_t nixl_capi_mem_list_size(nixl_capi_mem_list_t list, size_t *size_out);
nixl_capi_status_t nixl_capi_mem_list_is_empty(nixl_capi_mem_list_t list, bool *empty_out);
nixl_capi_status_t nixl_capi_mem_list_get(nixl_capi_mem_list_t list, size_t index, nixl_capi_mem_type_t *type_out);
nixl_capi_status_t nixl_capi_mem_type_to_string(nixl_capi_mem_type_t type, const char **string_out);
nixl_capi_status_t nixl_capi_destroy_mem_list(nixl_capi_mem_list_t list);

/* ---- parameters: a map of strings -------------------------------------------------------------------------------- */

nixl_capi_status_t nixl_capi_create_params(nixl_capi_params_t *params_out);
nixl_capi_status_t nixl_capi_params_add(nixl_capi_params_t params, const char *key, const char *value);
nixl_capi_status_t nixl_capi_params_is_empty(nixl_capi_params_t params, bool *empty_out);
nixl_capi_status_t nixl_capi_destroy_params(nixl_capi_params_t params);

nixl_capi_status_t nixl_capi_params_create_iterator(nixl_capi_params_t params, nixl_capi_param_iter_t *iterator_out);
/* Both strings are overwritten by the next call; at the end the key is left NULL. `more_out` speaks of the entry
 * after the one that was just answered. */
nixl_capi_status_t nixl_capi_params_iterator_next(nixl_capi_param_iter_t iterator, const char **key_out,
                                                  const char **value_out, bool *more_out);
nixl_capi_status_t nixl_capi_params_destroy_iterator(nixl_capi_param_iter_t iterator);

/* ---- options of a call ------------------------------------------------------------------------------------------- */

nixl_capi_status_t nixl_capi_create_opt_args(nixl_capi_opt_args_t *options_out);
nixl_capi_status_t nixl_capi_destroy_opt_args(nixl_capi_opt_args_t options);
/* Copies the engine's pointer: the backend handle may go, its agent may not. */
nixl_capi_status_t nixl_capi_opt_args_add_backend(nixl_capi_opt_args_t options, nixl_capi_backend_t backend);
nixl_capi_status_t nixl_capi_opt_args_set_has_notif(nixl_capi_opt_args_t options, bool has_notification);
nixl_capi_status_t nixl_capi_opt_args_get_has_notif(nixl_capi_opt_args_t options, bool *has_notification_out);
nixl_capi_status_t nixl_capi_opt_args_set_notif_msg(nixl_capi_opt_args_t options, const void *bytes, size_t length);
/* The caller frees the bytes with libc's free. */
nixl_capi_status_t nixl_capi_opt_args_get_notif_msg(nixl_capi_opt_args_t options, void **bytes_out,
                                                    size_t *length_out);
nixl_capi_status_t nixl_capi_opt_args_set_skip_desc_merge(nixl_capi_opt_args_t options, bool skip);
nixl_capi_status_t nixl_capi_opt_args_get_skip_desc_merge(nixl_capi_opt_args_t options, bool *skip_out);
nixl_capi_status_t nixl_capi_opt_args_set_ip_addr(nixl_capi_opt_args_t options, const char *address);
nixl_capi_status_t nixl_capi_opt_args_set_port(nixl_capi_opt_args_t options, uint16_t port);
/* Since 1.5. */
nixl_capi_status_t nixl_capi_opt_args_set_custom_param(nixl_capi_opt_args_t options, const void *bytes, size_t length);
/* Since 1.5. The caller frees the bytes with libc's free. */
nixl_capi_status_t nixl_capi_opt_args_get_custom_param(nixl_capi_opt_args_t options, void **bytes_out,
                                                       size_t *length_out);

/* ---- lists of memory to register --------------------------------------------------------------------------------- */

nixl_capi_status_t nixl_capi_create_reg_dlist(nixl_capi_mem_type_t type, nixl_capi_reg_dlist_t *list_out);
nixl_capi_status_t nixl_capi_destroy_reg_dlist(nixl_capi_reg_dlist_t list);
nixl_capi_status_t nixl_capi_reg_dlist_add_desc(nixl_capi_reg_dlist_t list, uintptr_t address, size_t length,
                                                uint64_t device, OPTIONAL const void *metadata,
                                                size_t metadata_length);
nixl_capi_status_t nixl_capi_reg_dlist_rem_desc(nixl_capi_reg_dlist_t list, int index);
nixl_capi_status_t nixl_capi_reg_dlist_get_type(nixl_capi_reg_dlist_t list, nixl_capi_mem_type_t *type_out);
nixl_capi_status_t nixl_capi_reg_dlist_desc_count(nixl_capi_reg_dlist_t list, size_t *count_out);
nixl_capi_status_t nixl_capi_reg_dlist_is_empty(nixl_capi_reg_dlist_t list, bool *empty_out);
nixl_capi_status_t nixl_capi_reg_dlist_trim(nixl_capi_reg_dlist_t list);
nixl_capi_status_t nixl_capi_reg_dlist_clear(nixl_capi_reg_dlist_t list);
nixl_capi_status_t nixl_capi_reg_dlist_resize(nixl_capi_reg_dlist_t list, size_t count);
nixl_capi_status_t nixl_capi_reg_dlist_print(nixl_capi_reg_dlist_t list);

nixl_capi_status_t nixl_capi_register_mem(nixl_capi_agent_t agent, nixl_capi_reg_dlist_t list,
                                          OPTIONAL nixl_capi_opt_args_t options);
nixl_capi_status_t nixl_capi_deregister_mem(nixl_capi_agent_t agent, nixl_capi_reg_dlist_t list,
                                            OPTIONAL nixl_capi_opt_args_t options);

/* ---- what a backend knows of memory ------------------------------------------------------------------------------ */

nixl_capi_status_t nixl_capi_create_query_resp_list(nixl_capi_query_resp_list_t *list_out);
nixl_capi_status_t nixl_capi_destroy_query_resp_list(nixl_capi_query_resp_list_t list);
nixl_capi_status_t nixl_capi_query_resp_list_size(nixl_capi_query_resp_list_t list, size_t *size_out);
nixl_capi_status_t nixl_capi_query_resp_list_has_value(nixl_capi_query_resp_list_t list, size_t index,
                                                       bool *has_value_out);
nixl_capi_status_t nixl_capi_query_resp_list_get_params(nixl_capi_query_resp_list_t list, size_t index,
                                                        nixl_capi_params_t *params_out);
nixl_capi_status_t nixl_capi_query_mem(nixl_capi_agent_t agent, nixl_capi_reg_dlist_t list,
                                       nixl_capi_query_resp_list_t answer, OPTIONAL nixl_capi_opt_args_t options);

/* ---- metadata: how agents get to know one another ----------------------------------------------------------------- */

/* The caller frees the bytes of both with libc's free. */
nixl_capi_status_t nixl_capi_get_local_md(nixl_capi_agent_t agent, void **bytes_out, size_t *length_out);
nixl_capi_status_t nixl_capi_get_local_partial_md(nixl_capi_agent_t agent, nixl_capi_reg_dlist_t list,
                                                  void **bytes_out, size_t *length_out,
                                                  OPTIONAL nixl_capi_opt_args_t options);
/* The caller frees the name with libc's free. The bytes are parsed unauthenticated. */
nixl_capi_status_t nixl_capi_load_remote_md(nixl_capi_agent_t agent, const void *bytes, size_t length,
                                            char **name_out);
nixl_capi_status_t nixl_capi_check_remote_md(nixl_capi_agent_t agent, const char *peer, nixl_capi_xfer_dlist_t list);
nixl_capi_status_t nixl_capi_invalidate_remote_md(nixl_capi_agent_t agent, const char *peer);
/* Over IP or etcd: these four queue work and answer success at once. */
nixl_capi_status_t nixl_capi_send_local_md(nixl_capi_agent_t agent, OPTIONAL nixl_capi_opt_args_t options);
nixl_capi_status_t nixl_capi_send_local_partial_md(nixl_capi_agent_t agent, nixl_capi_reg_dlist_t list,
                                                   OPTIONAL nixl_capi_opt_args_t options);
nixl_capi_status_t nixl_capi_fetch_remote_md(nixl_capi_agent_t agent, const char *peer,
                                             OPTIONAL nixl_capi_opt_args_t options);
nixl_capi_status_t nixl_capi_invalidate_local_md(nixl_capi_agent_t agent, OPTIONAL nixl_capi_opt_args_t options);

/* ---- lists of memory to transfer --------------------------------------------------------------------------------- */

nixl_capi_status_t nixl_capi_create_xfer_dlist(nixl_capi_mem_type_t type, nixl_capi_xfer_dlist_t *list_out);
nixl_capi_status_t nixl_capi_destroy_xfer_dlist(nixl_capi_xfer_dlist_t list);
nixl_capi_status_t nixl_capi_xfer_dlist_add_desc(nixl_capi_xfer_dlist_t list, uintptr_t address, size_t length,
                                                 uint64_t device);
nixl_capi_status_t nixl_capi_xfer_dlist_rem_desc(nixl_capi_xfer_dlist_t list, int index);
nixl_capi_status_t nixl_capi_xfer_dlist_get_type(nixl_capi_xfer_dlist_t list, nixl_capi_mem_type_t *type_out);
nixl_capi_status_t nixl_capi_xfer_dlist_desc_count(nixl_capi_xfer_dlist_t list, size_t *count_out);
nixl_capi_status_t nixl_capi_xfer_dlist_len(nixl_capi_xfer_dlist_t list, size_t *length_out);
nixl_capi_status_t nixl_capi_xfer_dlist_is_empty(nixl_capi_xfer_dlist_t list, bool *empty_out);
nixl_capi_status_t nixl_capi_xfer_dlist_trim(nixl_capi_xfer_dlist_t list);
nixl_capi_status_t nixl_capi_xfer_dlist_clear(nixl_capi_xfer_dlist_t list);
nixl_capi_status_t nixl_capi_xfer_dlist_resize(nixl_capi_xfer_dlist_t list, size_t count);
nixl_capi_status_t nixl_capi_xfer_dlist_print(nixl_capi_xfer_dlist_t list);

/* ---- transfers --------------------------------------------------------------------------------------------------- */

/* `peer` names whose memory the list holds; the empty name stands for the agent's own side. */
nixl_capi_status_t nixl_capi_prep_xfer_dlist(nixl_capi_agent_t agent, const char *peer, nixl_capi_xfer_dlist_t list,
                                             nixl_capi_xfer_dlist_handle_t *prepared_out,
                                             OPTIONAL nixl_capi_opt_args_t options);
nixl_capi_status_t nixl_capi_release_xfer_dlist_handle(nixl_capi_agent_t agent,
                                                       nixl_capi_xfer_dlist_handle_t prepared);
nixl_capi_status_t nixl_capi_make_xfer_req(nixl_capi_agent_t agent, nixl_capi_xfer_op_t operation,
                                           nixl_capi_xfer_dlist_handle_t local, const int *local_indices,
                                           size_t local_count, nixl_capi_xfer_dlist_handle_t remote,
                                           const int *remote_indices, size_t remote_count,
                                           nixl_capi_xfer_req_t *request_out,
                                           OPTIONAL nixl_capi_opt_args_t options);
nixl_capi_status_t nixl_capi_create_xfer_req(nixl_capi_agent_t agent, nixl_capi_xfer_op_t operation,
                                             nixl_capi_xfer_dlist_t local, nixl_capi_xfer_dlist_t remote,
                                             const char *peer, nixl_capi_xfer_req_t *request_out,
                                             OPTIONAL nixl_capi_opt_args_t options);
nixl_capi_status_t nixl_capi_estimate_xfer_cost(nixl_capi_agent_t agent, nixl_capi_xfer_req_t request,
                                                OPTIONAL nixl_capi_opt_args_t options, int64_t *microseconds_out,
                                                int64_t *error_margin_out, nixl_capi_cost_t *method_out);
/* May block for the whole transfer. Options without a notification clear the one that the request was made with;
 * NULL keeps it. */
nixl_capi_status_t nixl_capi_post_xfer_req(nixl_capi_agent_t agent, nixl_capi_xfer_req_t request,
                                           OPTIONAL nixl_capi_opt_args_t options);
/* Also what sends the notification once the data is there. */
nixl_capi_status_t nixl_capi_get_xfer_status(nixl_capi_agent_t agent, nixl_capi_xfer_req_t request);
nixl_capi_status_t nixl_capi_get_xfer_telemetry(nixl_capi_agent_t agent, nixl_capi_xfer_req_t request,
                                                nixl_capi_xfer_telemetry_t telemetry_out);
nixl_capi_status_t nixl_capi_query_xfer_backend(nixl_capi_agent_t agent, nixl_capi_xfer_req_t request,
                                                nixl_capi_backend_t *backend_out);
/* Success is no proof that the transfer has stopped: data may go on landing for as long as it takes. */
nixl_capi_status_t nixl_capi_release_xfer_req(nixl_capi_agent_t agent, nixl_capi_xfer_req_t request);
nixl_capi_status_t nixl_capi_destroy_xfer_req(nixl_capi_xfer_req_t request);

/* ---- notifications ----------------------------------------------------------------------------------------------- */

nixl_capi_status_t nixl_capi_gen_notif(nixl_capi_agent_t agent, const char *peer, const void *bytes, size_t length,
                                       OPTIONAL nixl_capi_opt_args_t options);
/* Adds to the map. Is the progress call of an agent that has no progress thread. */
nixl_capi_status_t nixl_capi_get_notifs(nixl_capi_agent_t agent, nixl_capi_notif_map_t map,
                                        OPTIONAL nixl_capi_opt_args_t options);
nixl_capi_status_t nixl_capi_create_notif_map(nixl_capi_notif_map_t *map_out);
nixl_capi_status_t nixl_capi_destroy_notif_map(nixl_capi_notif_map_t map);
nixl_capi_status_t nixl_capi_notif_map_size(nixl_capi_notif_map_t map, size_t *peers_out);
/* Undefined behaviour beyond the size: ask for it first. The names and bytes of both getters stay the map's. */
nixl_capi_status_t nixl_capi_notif_map_get_agent_at(nixl_capi_notif_map_t map, size_t index, const char **peer_out);
nixl_capi_status_t nixl_capi_notif_map_get_notifs_size(nixl_capi_notif_map_t map, const char *peer, size_t *size_out);
nixl_capi_status_t nixl_capi_notif_map_get_notif(nixl_capi_notif_map_t map, const char *peer, size_t index,
                                                 const void **bytes_out, size_t *length_out);
nixl_capi_status_t nixl_capi_notif_map_clear(nixl_capi_notif_map_t map);

/* ---- memory views, for transfers that a GPU starts; since 1.5 ----------------------------------------------------- */

nixl_capi_status_t nixl_capi_create_remote_dlist(nixl_capi_mem_type_t type, nixl_capi_remote_dlist_t *list_out);
nixl_capi_status_t nixl_capi_destroy_remote_dlist(nixl_capi_remote_dlist_t list);
nixl_capi_status_t nixl_capi_remote_dlist_add_desc(nixl_capi_remote_dlist_t list, uintptr_t address, size_t length,
                                                   uint64_t device, const char *peer);
nixl_capi_status_t nixl_capi_prep_mem_view_local(nixl_capi_agent_t agent, nixl_capi_xfer_dlist_t list,
                                                 nixl_capi_mem_view_t *view_out,
                                                 OPTIONAL nixl_capi_opt_args_t options);
nixl_capi_status_t nixl_capi_prep_mem_view_remote(nixl_capi_agent_t agent, nixl_capi_remote_dlist_t list,
                                                  nixl_capi_mem_view_t *view_out,
                                                  OPTIONAL nixl_capi_opt_args_t options);
nixl_capi_status_t nixl_capi_release_mem_view(nixl_capi_agent_t agent, nixl_capi_mem_view_t view);

#ifdef __cplusplus
}
#endif

#undef OPTIONAL

#endif
