/*
 * A libnixl_capi.so for tests: agents of one process that read from one another by memcpy, as slowly, late and wrongly as
 * the test says (mock_set). Counts what is alive (mock_live) and what a careful caller never does (mock_misuses).
 *
 * A handle is never reused and never freed, so that a use after its end is seen.
 */
#include "mock.h"

#include <dlfcn.h>

pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
long knobs[KNOBS], misuses;
struct handle *all;
static long live, with_context;

void mock_set(int knob, long value) { knobs[knob] = value; }
long mock_live(void) { return live; }
long mock_misuses(void) { return misuses; }
/* Agents that were made on a thread with a current CUDA context. */
long mock_with_context(void) { return with_context; }

void nap(long ms) {
    struct timespec time = {ms / 1000, ms % 1000 * 1000000};
    nanosleep(&time, NULL);
}

struct bytes copy(const void *from, size_t len) {
    struct bytes bytes = {calloc(1, len + 1), len};
    memcpy(bytes.at, from, len);
    return bytes;
}

struct handle *make(enum kind kind, struct handle *agent) {
    struct handle *handle = calloc(1, sizeof *handle);
    pthread_mutex_lock(&lock);
    *handle = (struct handle){.kind = kind, .alive = true, .agent = agent, .next = all};
    all = handle;
    live++;
    pthread_mutex_unlock(&lock);
    return handle;
}

bool good(const void *any, enum kind kind) {
    const struct handle *handle = any;
    bool fine = handle && handle->kind == kind && handle->alive && (!handle->agent || handle->agent->alive);
    if (!fine) __atomic_add_fetch(&misuses, 1, __ATOMIC_SEQ_CST);
    return fine;
}

nixl_capi_status_t end(void *any, enum kind kind) {
    if (!good(any, kind)) return NIXL_CAPI_ERROR_INVALID_PARAM;
    ((struct handle *)any)->alive = false;
    __atomic_sub_fetch(&live, 1, __ATOMIC_SEQ_CST);
    return NIXL_CAPI_SUCCESS;
}

/* Whether this thread has a current CUDA context. */
static bool has_context(void) {
    int (*current)(void **) = (int (*)(void **))dlsym(RTLD_DEFAULT, "cuCtxGetCurrent");
    void *context = NULL;
    return current && !current(&context) && context;
}

bool nixl_capi_is_stub(void) { return false; }

/* ---- agents and plugins ---- */

nixl_capi_status_t nixl_capi_create_configured_agent(const char *name, const nixl_capi_agent_config_t *config,
                                                     nixl_capi_agent_t *out) {
    if (config->thread_sync != NIXL_CAPI_THREAD_SYNC_RW) misuses++;
    if (config->enable_prog_thread && config->pthr_delay_us < 1000) misuses++;
    with_context += has_context();
    struct handle *agent = make(AGENT, NULL);
    agent->name = copy(name, strlen(name));
    *out = (void *)agent;
    return NIXL_CAPI_SUCCESS;
}

nixl_capi_status_t nixl_capi_destroy_agent(nixl_capi_agent_t any) {
    struct handle *agent = (void *)any;
    if (!good(agent, AGENT)) return NIXL_CAPI_ERROR_INVALID_PARAM;
    if (knobs[DESTROY_STATUS]) return knobs[DESTROY_STATUS];
    for (struct handle *one = all; one; one = one->next) {
        if (one->agent != agent) continue;
        one->cancelled = true; /* nothing lands after this */
        if (one->threaded) pthread_join(one->late, NULL);
        if (one->alive) { /* goes with its agent */
            one->alive = false;
            __atomic_sub_fetch(&live, 1, __ATOMIC_SEQ_CST);
        }
    }
    return end(agent, AGENT);
}

nixl_capi_status_t nixl_capi_get_available_plugins(nixl_capi_agent_t agent, nixl_capi_string_list_t *out) {
    if (!good(agent, AGENT)) return NIXL_CAPI_ERROR_INVALID_PARAM;
    *out = (void *)make(STRINGS, NULL);
    return NIXL_CAPI_SUCCESS;
}
nixl_capi_status_t nixl_capi_string_list_size(nixl_capi_string_list_t list, size_t *out) {
    *out = 1;
    return good(list, STRINGS) ? NIXL_CAPI_SUCCESS : NIXL_CAPI_ERROR_INVALID_PARAM;
}
nixl_capi_status_t nixl_capi_string_list_get(nixl_capi_string_list_t list, size_t index, const char **out) {
    *out = "UCX";
    return good(list, STRINGS) && index == 0 ? NIXL_CAPI_SUCCESS : NIXL_CAPI_ERROR_INVALID_PARAM;
}
nixl_capi_status_t nixl_capi_destroy_string_list(nixl_capi_string_list_t list) { return end(list, STRINGS); }

nixl_capi_status_t nixl_capi_get_plugin_params(nixl_capi_agent_t agent, const char *plugin, nixl_capi_mem_list_t *mems,
                                               nixl_capi_params_t *params) {
    if (!good(agent, AGENT) || strcmp(plugin, "UCX")) return NIXL_CAPI_ERROR_BACKEND;
    *mems = (void *)make(MEMS, NULL);
    *params = (void *)make(PARAMS, NULL);
    return NIXL_CAPI_SUCCESS;
}
nixl_capi_status_t nixl_capi_mem_list_size(nixl_capi_mem_list_t list, size_t *out) {
    *out = 1;
    return good(list, MEMS) ? NIXL_CAPI_SUCCESS : NIXL_CAPI_ERROR_INVALID_PARAM;
}
nixl_capi_status_t nixl_capi_mem_list_get(nixl_capi_mem_list_t list, size_t index, nixl_capi_mem_type_t *out) {
    *out = NIXL_CAPI_MEM_DRAM;
    return good(list, MEMS) && index == 0 ? NIXL_CAPI_SUCCESS : NIXL_CAPI_ERROR_INVALID_PARAM;
}
nixl_capi_status_t nixl_capi_destroy_mem_list(nixl_capi_mem_list_t list) { return end(list, MEMS); }
nixl_capi_status_t nixl_capi_params_add(nixl_capi_params_t params, const char *key, const char *value) {
    return good(params, PARAMS) && key && value ? NIXL_CAPI_SUCCESS : NIXL_CAPI_ERROR_INVALID_PARAM;
}
nixl_capi_status_t nixl_capi_params_is_empty(nixl_capi_params_t params, bool *out) {
    *out = false;
    return good(params, PARAMS) ? NIXL_CAPI_SUCCESS : NIXL_CAPI_ERROR_INVALID_PARAM;
}
nixl_capi_status_t nixl_capi_destroy_params(nixl_capi_params_t params) { return end(params, PARAMS); }
nixl_capi_status_t nixl_capi_params_create_iterator(nixl_capi_params_t params, nixl_capi_param_iter_t *out) {
    if (!good(params, PARAMS)) return NIXL_CAPI_ERROR_INVALID_PARAM;
    *out = (void *)make(ITERATOR, NULL);
    return NIXL_CAPI_SUCCESS;
}
/* As in the real one, both strings are overwritten by the next call. */
nixl_capi_status_t nixl_capi_params_iterator_next(nixl_capi_param_iter_t any, const char **key, const char **value,
                                                  bool *more) {
    static char text[2][16];
    struct handle *iterator = (void *)any;
    if (!good(iterator, ITERATOR)) return NIXL_CAPI_ERROR_INVALID_PARAM;
    size_t at = iterator->at++;
    *more = at < 2;
    if (at > 2) return NIXL_CAPI_SUCCESS;
    memset(text, 0, sizeof text);
    strcpy(text[0], "key0");
    text[0][3] += at;
    strcpy(text[1], "value0");
    text[1][5] += at;
    *key = text[0];
    *value = text[1];
    return NIXL_CAPI_SUCCESS;
}
nixl_capi_status_t nixl_capi_params_destroy_iterator(nixl_capi_param_iter_t it) { return end(it, ITERATOR); }

nixl_capi_status_t nixl_capi_create_backend(nixl_capi_agent_t agent, const char *plugin, nixl_capi_params_t params,
                                            nixl_capi_backend_t *out) {
    if (!good(agent, AGENT) || !good(params, PARAMS) || !plugin) return NIXL_CAPI_ERROR_INVALID_PARAM;
    *out = (void *)make(BACKEND, NULL);
    return NIXL_CAPI_SUCCESS;
}
nixl_capi_status_t nixl_capi_destroy_backend(nixl_capi_backend_t backend) { return end(backend, BACKEND); }

/* ---- options and lists ---- */

nixl_capi_status_t nixl_capi_create_opt_args(nixl_capi_opt_args_t *out) {
    *out = (void *)make(OPTIONS, NULL);
    return NIXL_CAPI_SUCCESS;
}
nixl_capi_status_t nixl_capi_destroy_opt_args(nixl_capi_opt_args_t options) { return end(options, OPTIONS); }
nixl_capi_status_t nixl_capi_opt_args_set_notif_msg(nixl_capi_opt_args_t options, const void *at, size_t len) {
    if (!good(options, OPTIONS)) return NIXL_CAPI_ERROR_INVALID_PARAM;
    ((struct handle *)options)->message = copy(at, len);
    return NIXL_CAPI_SUCCESS;
}
nixl_capi_status_t nixl_capi_opt_args_set_has_notif(nixl_capi_opt_args_t options, bool has) {
    if (!good(options, OPTIONS)) return NIXL_CAPI_ERROR_INVALID_PARAM;
    ((struct handle *)options)->has_message = has;
    return NIXL_CAPI_SUCCESS;
}

nixl_capi_status_t add(struct handle *list, enum kind kind, struct desc desc) {
    if (!good(list, kind)) return NIXL_CAPI_ERROR_INVALID_PARAM;
    list->descs = realloc(list->descs, (list->count + 1) * sizeof *list->descs);
    list->descs[list->count++] = desc;
    return NIXL_CAPI_SUCCESS;
}
void needs_context(struct desc desc) {
    if (desc.type == NIXL_CAPI_MEM_VRAM && !has_context()) misuses++;
}
nixl_capi_status_t nixl_capi_create_reg_dlist(nixl_capi_mem_type_t type, nixl_capi_reg_dlist_t *out) {
    struct handle *list = make(REG_LIST, NULL);
    list->type = type;
    *out = (void *)list;
    return type <= NIXL_CAPI_MEM_VRAM ? NIXL_CAPI_SUCCESS : NIXL_CAPI_ERROR_INVALID_PARAM;
}
nixl_capi_status_t nixl_capi_destroy_reg_dlist(nixl_capi_reg_dlist_t list) { return end(list, REG_LIST); }
nixl_capi_status_t nixl_capi_reg_dlist_add_desc(nixl_capi_reg_dlist_t list, uintptr_t addr, size_t len, uint64_t device,
                                                const void *metadata, size_t metadata_len) {
    struct handle *made = (void *)list;
    if ((device && made->type != NIXL_CAPI_MEM_VRAM) || metadata || metadata_len) misuses++;
    return add(made, REG_LIST, (struct desc){addr, len, made->type, device});
}
nixl_capi_status_t nixl_capi_create_xfer_dlist(nixl_capi_mem_type_t type, nixl_capi_xfer_dlist_t *out) {
    struct handle *list = make(XFER_LIST, NULL);
    list->type = type;
    *out = (void *)list;
    return type <= NIXL_CAPI_MEM_VRAM ? NIXL_CAPI_SUCCESS : NIXL_CAPI_ERROR_INVALID_PARAM;
}
nixl_capi_status_t nixl_capi_destroy_xfer_dlist(nixl_capi_xfer_dlist_t list) { return end(list, XFER_LIST); }
nixl_capi_status_t nixl_capi_xfer_dlist_add_desc(nixl_capi_xfer_dlist_t list, uintptr_t addr, size_t len,
                                                 uint64_t device) {
    struct handle *made = (void *)list;
    if (device && made->type != NIXL_CAPI_MEM_VRAM) misuses++;
    return add(made, XFER_LIST, (struct desc){addr, len, made->type, device});
}

/* ---- registration ---- */

struct handle *registered(struct handle *agent, struct desc desc) {
    for (struct handle *one = all; one; one = one->next)
        if (one->kind == MEMORY && one->alive && (!agent || one->agent == agent) && one->descs->addr <= desc.addr &&
            desc.addr + desc.len <= one->descs->addr + one->descs->len && one->descs->type == desc.type &&
            one->descs->device == desc.device)
            return one;
    return NULL;
}

nixl_capi_status_t nixl_capi_register_mem(nixl_capi_agent_t agent, nixl_capi_reg_dlist_t any, nixl_capi_opt_args_t no) {
    struct handle *list = (void *)any;
    if (!good(agent, AGENT) || !good(list, REG_LIST) || no) return NIXL_CAPI_ERROR_INVALID_PARAM;
    needs_context(*list->descs);
    add(make(MEMORY, (void *)agent), MEMORY, *list->descs);
    return NIXL_CAPI_SUCCESS;
}
nixl_capi_status_t nixl_capi_deregister_mem(nixl_capi_agent_t any, nixl_capi_reg_dlist_t list, nixl_capi_opt_args_t no) {
    struct handle *agent = (void *)any;
    if (!good(agent, AGENT) || !good(list, REG_LIST) || no) return NIXL_CAPI_ERROR_INVALID_PARAM;
    struct handle *memory = registered(agent, ((struct handle *)list)->descs[0]);
    if (!memory) return NIXL_CAPI_ERROR_BACKEND;
    for (struct handle *one = all; one; one = one->next) /* nothing may hold on to it */
        if (one->alive && one->agent == agent && (one->kind == REQUEST || one->kind == PREPARED))
            for (size_t at = 0; at < one->count; at++)
                if (registered(agent, one->descs[at]) == memory) misuses++;
    return end(memory, MEMORY);
}

/* ---- metadata ---- */

nixl_capi_status_t nixl_capi_get_local_md(nixl_capi_agent_t any, void **out, size_t *len) {
    struct handle *agent = (void *)any;
    if (!good(agent, AGENT)) return NIXL_CAPI_ERROR_INVALID_PARAM;
    *len = 5 + agent->name.len;
    *out = malloc(*len);
    memcpy(*out, "MOCK:", 5);
    memcpy((char *)*out + 5, agent->name.at, agent->name.len);
    return NIXL_CAPI_SUCCESS;
}
nixl_capi_status_t nixl_capi_load_remote_md(nixl_capi_agent_t agent, const void *at, size_t len, char **out) {
    if (!good(agent, AGENT) || len < 6 || memcmp(at, "MOCK:", 5)) return NIXL_CAPI_ERROR_BACKEND;
    *out = copy((const char *)at + 5, len - 5).at;
    return NIXL_CAPI_SUCCESS;
}
nixl_capi_status_t nixl_capi_invalidate_remote_md(nixl_capi_agent_t any, const char *peer) {
    struct handle *agent = (void *)any;
    if (!good(agent, AGENT)) return NIXL_CAPI_ERROR_INVALID_PARAM;
    for (struct handle *one = all; one; one = one->next) /* nothing may hold on to it */
        if (one->alive && one->agent == agent && one->name.at && !strcmp(one->name.at, peer)) misuses++;
    return NIXL_CAPI_SUCCESS;
}
