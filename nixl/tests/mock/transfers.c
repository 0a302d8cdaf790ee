/* Transfers and notifications of the mock. */
#include "mock.h"

struct notice {
    struct handle *to;
    char from[256];
    struct bytes message;
    bool taken;
    struct notice *next;
};

static struct notice *notices;

/* ---- transfers ---- */

static struct handle *request(nixl_capi_agent_t agent, const char *peer, struct handle *options) {
    struct handle *made = make(REQUEST, (void *)agent);
    made->name = copy(peer, strlen(peer));
    made->polls = knobs[POLLS];
    if (options && options->has_message) {
        made->has_message = true;
        made->message = copy(options->message.at, options->message.len);
    }
    return made;
}

static nixl_capi_status_t pair(struct handle *made, struct desc local, struct desc remote) {
    if (!registered(made->agent, local) || !registered(NULL, remote) || local.len != remote.len)
        return NIXL_CAPI_ERROR_NOT_FOUND;
    made->descs = realloc(made->descs, (made->count + 1) * sizeof local);
    made->remote = realloc(made->remote, (made->count + 1) * sizeof remote);
    made->descs[made->count] = local;
    made->remote[made->count++] = remote;
    return NIXL_CAPI_SUCCESS;
}

nixl_capi_status_t nixl_capi_create_xfer_req(nixl_capi_agent_t agent, nixl_capi_xfer_op_t op, nixl_capi_xfer_dlist_t l,
                                             nixl_capi_xfer_dlist_t r, const char *peer, nixl_capi_xfer_req_t *out,
                                             nixl_capi_opt_args_t options) {
    struct handle *local = (void *)l, *remote = (void *)r;
    if (!good(agent, AGENT) || !good(local, XFER_LIST) || !good(remote, XFER_LIST) || op != NIXL_CAPI_XFER_OP_READ ||
        local->count != remote->count)
        return NIXL_CAPI_ERROR_INVALID_PARAM;
    struct handle *made = request(agent, peer, (void *)options);
    nixl_capi_status_t status = NIXL_CAPI_SUCCESS;
    for (size_t at = 0; at < local->count && !status; at++) status = pair(made, local->descs[at], remote->descs[at]);
    if (status) end(made, REQUEST);
    *out = (void *)made;
    return status;
}

nixl_capi_status_t nixl_capi_prep_xfer_dlist(nixl_capi_agent_t agent, const char *peer, nixl_capi_xfer_dlist_t any,
                                             nixl_capi_xfer_dlist_handle_t *out, nixl_capi_opt_args_t no) {
    struct handle *list = (void *)any;
    if (!good(agent, AGENT) || !good(list, XFER_LIST) || no) return NIXL_CAPI_ERROR_INVALID_PARAM;
    struct handle *made = make(PREPARED, (void *)agent);
    made->name = copy(peer, strlen(peer));
    for (size_t at = 0; at < list->count; at++) add(made, PREPARED, list->descs[at]);
    *out = (void *)made;
    return NIXL_CAPI_SUCCESS;
}
nixl_capi_status_t nixl_capi_release_xfer_dlist_handle(nixl_capi_agent_t agent, nixl_capi_xfer_dlist_handle_t list) {
    return good(agent, AGENT) ? end(list, PREPARED) : NIXL_CAPI_ERROR_INVALID_PARAM;
}
nixl_capi_status_t nixl_capi_make_xfer_req(nixl_capi_agent_t agent, nixl_capi_xfer_op_t op,
                                           nixl_capi_xfer_dlist_handle_t l, const int *here, size_t count,
                                           nixl_capi_xfer_dlist_handle_t r, const int *there, size_t remote_count,
                                           nixl_capi_xfer_req_t *out, nixl_capi_opt_args_t options) {
    struct handle *local = (void *)l, *remote = (void *)r;
    if (!good(agent, AGENT) || !good(local, PREPARED) || !good(remote, PREPARED) || op || count != remote_count)
        return NIXL_CAPI_ERROR_INVALID_PARAM;
    struct handle *made = request(agent, remote->name.at, (void *)options);
    for (size_t at = 0; at < count; at++) pair(made, local->descs[here[at]], remote->descs[there[at]]);
    *out = (void *)made;
    return NIXL_CAPI_SUCCESS;
}

static void send(struct handle *from, const char *peer, struct bytes message) {
    pthread_mutex_lock(&lock);
    for (struct handle *to = all; to; to = to->next)
        if (to->kind == AGENT && to->alive && !strcmp(to->name.at, peer)) {
            struct notice *notice = calloc(1, sizeof *notice), **last = &notices;
            *notice = (struct notice){.to = to, .message = message};
            strncpy(notice->from, from->name.at, sizeof notice->from - 1);
            while (*last) last = &(*last)->next;
            *last = notice;
        }
    pthread_mutex_unlock(&lock);
}

static void land(struct handle *made) {
    for (size_t at = 0; at < made->count; at++)
        memcpy((void *)made->descs[at].addr, (void *)made->remote[at].addr, made->descs[at].len);
    made->landed = true;
}

static nixl_capi_status_t finish(struct handle *made) {
    if (knobs[END_STATUS]) return knobs[END_STATUS];
    if (!made->landed) {
        land(made);
        if (made->has_message) send(made->agent, made->name.at, made->message);
    }
    return NIXL_CAPI_SUCCESS;
}

nixl_capi_status_t nixl_capi_post_xfer_req(nixl_capi_agent_t agent, nixl_capi_xfer_req_t any, nixl_capi_opt_args_t no) {
    struct handle *made = (void *)any;
    if (!good(agent, AGENT) || !good(made, REQUEST) || made->posted || no) return NIXL_CAPI_ERROR_INVALID_PARAM;
    needs_context(made->descs[0]);
    nap(knobs[STUCK_POST_MS]);
    if (knobs[POST_STATUS]) return knobs[POST_STATUS];
    made->posted = true;
    return made->polls ? NIXL_CAPI_IN_PROG : finish(made);
}
nixl_capi_status_t nixl_capi_get_xfer_status(nixl_capi_agent_t agent, nixl_capi_xfer_req_t any) {
    struct handle *made = (void *)any;
    if (!good(agent, AGENT) || !good(made, REQUEST) || !made->posted) return NIXL_CAPI_ERROR_INVALID_PARAM;
    return made->polls && --made->polls ? NIXL_CAPI_IN_PROG : finish(made);
}

static void *late(void *any) {
    struct handle *made = any;
    for (long ms = 0; ms < knobs[LATE_MS] && !made->cancelled; ms++) nap(1);
    if (!made->cancelled) land(made);
    return NULL;
}

nixl_capi_status_t nixl_capi_release_xfer_req(nixl_capi_agent_t agent, nixl_capi_xfer_req_t any) {
    struct handle *made = (void *)any;
    if (!good(agent, AGENT) || !good(made, REQUEST) || made->released) {
        misuses++;
        return NIXL_CAPI_ERROR_INVALID_PARAM;
    }
    if (knobs[REFUSED_RELEASES] && knobs[REFUSED_RELEASES]--) return NIXL_CAPI_ERROR_BACKEND;
    made->released = true;
    if (!made->landed && knobs[LATE_MS]) made->threaded = !pthread_create(&made->late, NULL, late, made);
    return NIXL_CAPI_SUCCESS;
}
nixl_capi_status_t nixl_capi_destroy_xfer_req(nixl_capi_xfer_req_t any) {
    struct handle *made = (void *)any;
    if (good(made, REQUEST) && !made->released) return NIXL_CAPI_ERROR_INVALID_STATE;
    return end(made, REQUEST);
}

/* ---- notifications ---- */

nixl_capi_status_t nixl_capi_gen_notif(nixl_capi_agent_t agent, const char *peer, const void *at, size_t len,
                                       nixl_capi_opt_args_t no) {
    if (!good(agent, AGENT) || no) return NIXL_CAPI_ERROR_INVALID_PARAM;
    send((void *)agent, peer, copy(at, len));
    return NIXL_CAPI_SUCCESS;
}
/* One notification a time: the map has it under its sender. */
nixl_capi_status_t nixl_capi_get_notifs(nixl_capi_agent_t agent, nixl_capi_notif_map_t any, nixl_capi_opt_args_t no) {
    struct handle *map = (void *)any;
    if (!good(agent, AGENT) || !good(map, MAP) || no) return NIXL_CAPI_ERROR_INVALID_PARAM;
    pthread_mutex_lock(&lock);
    for (struct notice *one = notices; one && !map->count; one = one->next)
        if (one->to == (void *)agent && !one->taken) {
            one->taken = true;
            free(map->name.at);
            map->name = copy(one->from, strlen(one->from));
            map->message = one->message;
            map->count = 1;
        }
    pthread_mutex_unlock(&lock);
    return NIXL_CAPI_SUCCESS;
}
nixl_capi_status_t nixl_capi_create_notif_map(nixl_capi_notif_map_t *out) {
    *out = (void *)make(MAP, NULL);
    return NIXL_CAPI_SUCCESS;
}
nixl_capi_status_t nixl_capi_destroy_notif_map(nixl_capi_notif_map_t map) { return end(map, MAP); }
nixl_capi_status_t nixl_capi_notif_map_size(nixl_capi_notif_map_t map, size_t *out) {
    *out = ((struct handle *)map)->count;
    return NIXL_CAPI_SUCCESS;
}
nixl_capi_status_t nixl_capi_notif_map_get_agent_at(nixl_capi_notif_map_t map, size_t index, const char **out) {
    if (index >= ((struct handle *)map)->count) misuses++;
    *out = ((struct handle *)map)->name.at;
    return NIXL_CAPI_SUCCESS;
}
nixl_capi_status_t nixl_capi_notif_map_get_notifs_size(nixl_capi_notif_map_t map, const char *peer, size_t *out) {
    *out = strcmp(((struct handle *)map)->name.at, peer) == 0;
    return NIXL_CAPI_SUCCESS;
}
nixl_capi_status_t nixl_capi_notif_map_get_notif(nixl_capi_notif_map_t map, const char *peer, size_t index,
                                                 const void **at, size_t *len) {
    if (index || strcmp(((struct handle *)map)->name.at, peer)) misuses++;
    *at = ((struct handle *)map)->message.at;
    *len = ((struct handle *)map)->message.len;
    return NIXL_CAPI_SUCCESS;
}
nixl_capi_status_t nixl_capi_notif_map_clear(nixl_capi_notif_map_t map) {
    ((struct handle *)map)->count = 0;
    return NIXL_CAPI_SUCCESS;
}
