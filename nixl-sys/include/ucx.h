/*
 * The part of UCX's C ABI that kvgate's diagnostics call: versions, transports, configuration, memory types.
 *
 * Written for kvgate from UCX 1.10 to 1.23; it is not UCX's header. Structs with a field_mask grow at their end from
 * version to version: the library reads and writes only the fields that the mask names, so this short form serves all.
 * uct_tl_resource_desc_t has no mask and has been this size since 1.10.
 */
#ifndef KVGATE_UCX_H
#define KVGATE_UCX_H

#include <stddef.h>
#include <stdint.h>

/* One byte; 0 is success, negative an error (ucs_status_string tells which). */
typedef signed char ucs_status_t;

/* ---- ucp: versions, configuration, contexts ---------------------------------------------------------------------- */

typedef struct ucp_config ucp_config_t;
typedef struct ucp_context *ucp_context_h;

typedef enum {
    UCS_THREAD_MODE_SINGLE = 0,
    UCS_THREAD_MODE_SERIALIZED = 1,
    UCS_THREAD_MODE_MULTI = 2
} ucs_thread_mode_t;

typedef enum { UCS_CONFIG_PRINT_CONFIG = 1 } ucs_config_print_flags_t;

enum ucp_lib_attr_field { UCP_LIB_ATTR_FIELD_MAX_THREAD_LEVEL = 1 };

typedef struct ucp_lib_attr {
    uint64_t field_mask;
    ucs_thread_mode_t max_thread_level;
} ucp_lib_attr_t;

enum ucp_params_field { UCP_PARAM_FIELD_FEATURES = 1 };
enum ucp_feature { UCP_FEATURE_RMA = 2 };

typedef struct ucp_params {
    uint64_t field_mask;
    uint64_t features;
} ucp_params_t;

enum ucp_context_attr_field { UCP_ATTR_FIELD_MEMORY_TYPES = 4 };

typedef struct ucp_context_attr {
    uint64_t field_mask;
    size_t request_size;
    ucs_thread_mode_t thread_mode;
    uint64_t memory_types; /* one bit per type, see below */
} ucp_context_attr_t;

/* Bits of memory_types. */
enum ucs_memory_type {
    UCS_MEMORY_TYPE_HOST = 0,
    UCS_MEMORY_TYPE_CUDA = 1,
    UCS_MEMORY_TYPE_CUDA_MANAGED = 2,
    UCS_MEMORY_TYPE_ROCM = 3,
    UCS_MEMORY_TYPE_ROCM_MANAGED = 4
};

const char *ucs_status_string(ucs_status_t status);
void ucp_get_version(unsigned *major, unsigned *minor, unsigned *release);
const char *ucp_get_version_string(void);
ucs_status_t ucp_lib_query(ucp_lib_attr_t *attributes);
ucs_status_t ucp_config_read(const char *prefix, const char *file, ucp_config_t **config_out);
/* `stream` is a FILE pointer. */
void ucp_config_print(const ucp_config_t *config, void *stream, const char *title, ucs_config_print_flags_t flags);
void ucp_config_release(ucp_config_t *config);
/* What UCX's macro ucp_init expands to. */
ucs_status_t ucp_init_version(unsigned api_major, unsigned api_minor, const ucp_params_t *params,
                              const ucp_config_t *config, ucp_context_h *context_out);
ucs_status_t ucp_context_query(ucp_context_h context, ucp_context_attr_t *attributes);
void ucp_cleanup(ucp_context_h context);

/* ---- uct: components, their memory domains, the transports of those ----------------------------------------------- */

typedef struct uct_component *uct_component_h;
typedef struct uct_md *uct_md_h;
typedef struct uct_md_config uct_md_config_t;

typedef enum {
    UCT_DEVICE_TYPE_NET = 0,
    UCT_DEVICE_TYPE_SHM = 1,
    UCT_DEVICE_TYPE_ACC = 2,
    UCT_DEVICE_TYPE_SELF = 3
} uct_device_type_t;

typedef struct uct_md_resource_desc {
    char md_name[16];
} uct_md_resource_desc_t;

enum uct_component_attr_field {
    UCT_COMPONENT_ATTR_FIELD_NAME = 1,
    UCT_COMPONENT_ATTR_FIELD_MD_RESOURCE_COUNT = 2,
    UCT_COMPONENT_ATTR_FIELD_MD_RESOURCES = 4
};

typedef struct uct_component_attr {
    uint64_t field_mask;
    char name[16];
    unsigned md_resource_count;
    uct_md_resource_desc_t *md_resources; /* the caller's, md_resource_count entries */
} uct_component_attr_t;

typedef struct uct_tl_resource_desc {
    char tl_name[10];
    char dev_name[32];
    uct_device_type_t dev_type;
    uint8_t sys_device;
} uct_tl_resource_desc_t;

ucs_status_t uct_query_components(uct_component_h **components_out, unsigned *count_out);
void uct_release_component_list(uct_component_h *components);
ucs_status_t uct_component_query(uct_component_h component, uct_component_attr_t *attributes);
ucs_status_t uct_md_config_read(uct_component_h component, const char *prefix, const char *file,
                                uct_md_config_t **config_out);
void uct_config_release(void *config);
ucs_status_t uct_md_open(uct_component_h component, const char *name, const uct_md_config_t *config,
                         uct_md_h *domain_out);
void uct_md_close(uct_md_h domain);
ucs_status_t uct_md_query_tl_resources(uct_md_h domain, uct_tl_resource_desc_t **resources_out,
                                       unsigned *count_out);
void uct_release_tl_resource_list(uct_tl_resource_desc_t *resources);

#endif
