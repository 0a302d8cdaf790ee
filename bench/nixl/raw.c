/* NIXL's C API without anything around it, in the setting that measures best (docs/nixl-ffi.md, section 3.4): one thread, no progress thread,
 * no locks inside NIXL, polls without a pause at first and every 200 us later, huge pages, neighbours joined, one list per read.
 * Commands and answers are those of bench/nixl/src/main.rs. Built by bench/nixl.py. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "nixl_capi.h"

#define CALLS(CALL)                                                                                                        \
    CALL(create_configured_agent) CALL(get_plugin_params) CALL(params_add) CALL(create_backend) CALL(create_reg_dlist)      \
    CALL(reg_dlist_add_desc) CALL(register_mem) CALL(load_remote_md) CALL(create_xfer_dlist) CALL(xfer_dlist_add_desc)       \
    CALL(destroy_xfer_dlist) CALL(create_xfer_req) CALL(post_xfer_req) CALL(get_xfer_status) CALL(release_xfer_req)          \
    CALL(destroy_xfer_req)

#define DECLARE(name) static __typeof__(&nixl_capi_##name) name;
CALLS(DECLARE)

/* Polls this long without a pause. */
#define SPIN_NS 2000000
#define PAUSE_NS 200000

static nixl_capi_agent_t agent;
static char *destination, *peer;
static uint64_t peer_base, block_bytes;
static uint32_t *ids;
static size_t count;

struct piece { uint64_t from, to, len; };
static struct piece *pieces;

static void die(const char *what) {
    fprintf(stderr, "raw: %s\n", what);
    exit(1);
}

static void ok(nixl_capi_status_t status, const char *call) {
    if (status < 0)
        die(call);
}

static uint64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void load(const char *path) {
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!library)
        die(dlerror());
#define RESOLVE(name)                                                                                                       \
    if (!(*(void **)&name = dlsym(library, "nixl_capi_" #name)))                                                            \
        die("no nixl_capi_" #name);
    CALLS(RESOLVE)
}

static void start(uint64_t bytes, const char *error_handling) {
    nixl_capi_agent_config_t config = {0};
    config.thread_sync = NIXL_CAPI_THREAD_SYNC_NONE;
    config.num_workers = 1;
    config.lthr_delay_us = 100000;
    char name[64];
    snprintf(name, sizeof name, "bench-raw-%d", getpid());
    ok(create_configured_agent(name, &config, &agent), "create_configured_agent");
    nixl_capi_mem_list_t mems;
    nixl_capi_params_t params;
    ok(get_plugin_params(agent, "UCX", &mems, &params), "get_plugin_params");
    if (!strcmp(error_handling, "none"))
        ok(params_add(params, "ucx_error_handling_mode", "none"), "params_add");
    nixl_capi_backend_t backend;
    ok(create_backend(agent, "UCX", params, &backend), "create_backend");
    size_t huge = 2u << 20;
    char *map = mmap(NULL, bytes + huge, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (map == MAP_FAILED)
        die("mmap");
    destination = (char *)(((uintptr_t)map + huge - 1) & ~(uintptr_t)(huge - 1));
    madvise(destination, bytes, MADV_HUGEPAGE);
    memset(destination, 0, bytes);
    nixl_capi_reg_dlist_t list;
    ok(create_reg_dlist(NIXL_CAPI_MEM_DRAM, &list), "create_reg_dlist");
    ok(reg_dlist_add_desc(list, (uintptr_t)destination, bytes, 0, NULL, 0), "reg_dlist_add_desc");
    ok(register_mem(agent, list, NULL), "register_mem");
}

static void set_peer(char *words) {
    char *rest = words;
    peer_base = strtoull(rest, &rest, 10);
    strtoull(rest, &rest, 10);
    while (*rest == ' ')
        rest++;
    size_t len = strcspn(rest, " \n") / 2;
    unsigned char *blob = malloc(len + 1);
    for (size_t at = 0; at < len; at++) {
        unsigned byte;
        if (sscanf(rest + 2 * at, "%2x", &byte) != 1)
            die("metadata is not hexadecimal");
        blob[at] = (unsigned char)byte;
    }
    ok(load_remote_md(agent, blob, len, &peer), "load_remote_md");
    free(blob);
}

static int by_id(const void *a, const void *b) {
    uint32_t left = *(const uint32_t *)a, right = *(const uint32_t *)b;
    return (left > right) - (left < right);
}

/* Blocks land in the order of their ids. */
static void set_blocks(char *words) {
    char *rest = words, *end;
    block_bytes = strtoull(rest, &rest, 10);
    count = 0;
    for (;;) {
        unsigned long id = strtoul(rest, &end, 10);
        if (end == rest)
            break;
        if (count % 1024 == 0 && !(ids = realloc(ids, (count + 1024) * sizeof *ids)))
            die("memory");
        ids[count++] = (uint32_t)id;
        rest = end;
    }
    qsort(ids, count, sizeof *ids, by_id);
    pieces = realloc(pieces, count * sizeof *pieces);
}

static size_t join(void) {
    size_t used = 0;
    for (size_t at = 0; at < count; at++) {
        uint64_t from = peer_base + ids[at] * block_bytes;
        if (used && pieces[used - 1].from + pieces[used - 1].len == from)
            pieces[used - 1].len += block_bytes;
        else
            pieces[used++] = (struct piece){from, (uintptr_t)destination + at * block_bytes, block_bytes};
    }
    return used;
}

static size_t once(void) {
    size_t used = join();
    nixl_capi_xfer_dlist_t here, there;
    ok(create_xfer_dlist(NIXL_CAPI_MEM_DRAM, &here), "create_xfer_dlist");
    ok(create_xfer_dlist(NIXL_CAPI_MEM_DRAM, &there), "create_xfer_dlist");
    for (size_t at = 0; at < used; at++) {
        ok(xfer_dlist_add_desc(here, pieces[at].to, pieces[at].len, 0), "xfer_dlist_add_desc");
        ok(xfer_dlist_add_desc(there, pieces[at].from, pieces[at].len, 0), "xfer_dlist_add_desc");
    }
    nixl_capi_xfer_req_t request;
    ok(create_xfer_req(agent, NIXL_CAPI_XFER_OP_READ, here, there, peer, &request, NULL), "create_xfer_req");
    nixl_capi_status_t status = post_xfer_req(agent, request, NULL);
    ok(status, "post_xfer_req");
    uint64_t since = now();
    while (status == NIXL_CAPI_IN_PROG) {
        ok(status = get_xfer_status(agent, request), "get_xfer_status");
        if (status == NIXL_CAPI_IN_PROG && now() - since > SPIN_NS)
            nanosleep(&(struct timespec){0, PAUSE_NS}, NULL);
    }
    ok(release_xfer_req(agent, request), "release_xfer_req");
    destroy_xfer_req(request);
    destroy_xfer_dlist(here);
    destroy_xfer_dlist(there);
    return used;
}

static void run(char *words) {
    char *rest = words;
    double within = strtod(rest, &rest) * 1e9;
    size_t most = strtoull(rest, NULL, 10), runs = 0, used = 0, wrong = 0;
    uint64_t *took = malloc((most ? most : 1) * sizeof *took);
    for (size_t at = 0; at < count; at++)
        memset(destination + at * block_bytes, 0xff, 8);
    uint64_t begun = now(), last = begun;
    do {
        used = once();
        uint64_t end = now();
        took[runs++] = end - last;
        last = end;
    } while (runs < most && (double)(last - begun) < within);
    for (size_t at = 0; at < count; at++) {
        uint64_t word;
        memcpy(&word, destination + at * block_bytes, 8);
        wrong += word != ids[at] * block_bytes;
    }
    printf("{\"pieces\":%zu,\"wrong\":%zu,\"runs\":%zu,\"ns\":[", used, wrong, runs);
    for (size_t at = 0; at < runs; at++)
        printf("%s%llu", at ? "," : "", (unsigned long long)took[at]);
    printf("]}\n");
    free(took);
}

int main(int argc, char **argv) {
    if (argc != 4)
        die("usage: raw LIBRARY BYTES peer|none");
    load(argv[1]);
    start(strtoull(argv[2], NULL, 10), argv[3]);
    printf("{\"ready\":true}\n");
    fflush(stdout);
    char *line = NULL;
    size_t room = 0;
    while (getline(&line, &room, stdin) > 0) {
        if (!strncmp(line, "run ", 4)) {
            run(line + 4);
        } else {
            if (!strncmp(line, "peer ", 5))
                set_peer(line + 5);
            else if (!strncmp(line, "blocks ", 7))
                set_blocks(line + 7);
            else
                die("no such command");
            printf("{\"ok\":true}\n");
        }
        fflush(stdout);
    }
    return 0;
}
