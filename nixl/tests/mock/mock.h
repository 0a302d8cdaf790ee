/* What the parts of the mock share; see mock_capi.c. */
#ifndef MOCK_H
#define MOCK_H

#include <nixl_capi.h>

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum knob { POLLS, END_STATUS, POST_STATUS, REFUSED_RELEASES, LATE_MS, DESTROY_STATUS, STUCK_POST_MS, KNOBS };

enum kind { AGENT, BACKEND, STRINGS, MEMS, PARAMS, ITERATOR, OPTIONS, REG_LIST, XFER_LIST, PREPARED, REQUEST, MAP, MEMORY };

struct bytes {
    char *at;
    size_t len;
};

struct desc {
    uintptr_t addr;
    size_t len;
    nixl_capi_mem_type_t type;
    uint64_t device;
};

struct handle {
    enum kind kind;
    bool alive;
    struct handle *agent;
    struct bytes name, message; /* agent or peer; notification */
    struct desc *descs, *remote;
    nixl_capi_mem_type_t type; /* of a list */
    size_t count, at;
    bool has_message, posted, released, landed, cancelled, threaded;
    long polls;
    pthread_t late;
    struct handle *next; /* all handles ever made */
};

extern pthread_mutex_t lock;
extern long knobs[KNOBS], misuses;
extern struct handle *all;

void nap(long ms);
struct bytes copy(const void *from, size_t len);
struct handle *make(enum kind kind, struct handle *agent);
/* Whether a handle may be used: of the right kind, alive, and so its agent. */
bool good(const void *any, enum kind kind);
nixl_capi_status_t end(void *any, enum kind kind);
nixl_capi_status_t add(struct handle *list, enum kind kind, struct desc desc);
/* Memory of a GPU needs a current context on the thread that calls. */
void needs_context(struct desc desc);
/* The registration that holds all of `desc`; of any agent when that is NULL. */
struct handle *registered(struct handle *agent, struct desc desc);

#endif
