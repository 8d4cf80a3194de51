/*
 * publisher: tells routers which pages a worker holds and how busy it is: the Admin service's
 * Watch.
 *
 *   engine ──publisher_page(), publisher_load()──▶ publisher thread ──WatchReply──▶ routers
 *
 * Events of some milliseconds leave together. Who comes (or missed a message) gets everything
 * first; who does not read falls behind and gets everything again later.
 *
 * Owns      a copy of what the cache holds, by name, and the routers' sessions.
 * Promises  the engine is never blocked by a router; it waits only when the thread has not run for
 *           QUEUE_MAX events. Every subscriber sees the same order of events as the engine made.
 * Threads   publisher_page, publisher_load: the engine's. The rest: as start and stop say.
 * Lifetime  publisher_start before the server that has its method, publisher_stop after that
 *           server is freed.
 */
#ifndef BATON_COMMON_WORKER_PUBLISHER_H
#define BATON_COMMON_WORKER_PUBLISHER_H

#include <stdbool.h>
#include <stdint.h>

#include "baton/v1/common.pb-c.h"
#include "common/rpc/rpc.h"

struct publisher;

enum publisher_event {
    PUBLISH_PAGE_IN,   /* a tier holds it now */
    PUBLISH_PAGE_OUT,  /* that tier no longer */
    PUBLISH_STATE_IN,  /* a snapshot allows to compute on after it; the tier is not looked at */
    PUBLISH_STATE_OUT, /* no longer */
    PUBLISH_ALL_OUT    /* nothing is held any more; the block is not looked at */
};

enum publisher_tier { PUBLISH_DEVICE, PUBLISH_HOST, PUBLISH_STORAGE };

struct publisher_figures {
    uint32_t running, waiting;        /* requests */
    uint64_t queued_tokens;           /* prompt tokens still to compute */
    uint32_t free_pages, total_pages; /* evictable ones are free */
    uint64_t steps;                   /* so far */
    uint32_t max_running;             /* requests at once */
};

struct publisher_config {
    /* Fills the identity of the answer to hello; strings are borrowed. Any thread. */
    void (*identity)(void *arg, Baton__V1__Identity *out);
    void *arg;
    bool needs_state; /* the engine tells PUBLISH_STATE_*: a hit must end at one */
};

enum status_code publisher_start(const struct publisher_config *config, struct publisher **out,
                                 struct status *st);
/** Joins the thread and frees. NULL is fine. */
void publisher_stop(struct publisher *p);

/** /baton.v1.Admin/Watch */
struct rpc_method publisher_method(struct publisher *p);

/** @param block  the page's name: prefix_block_hash(). p may be NULL: nothing happens */
void publisher_page(struct publisher *p, enum publisher_event what, enum publisher_tier tier,
                    uint64_t block);

/** Once per step, and when the figures change without one. p may be NULL. */
void publisher_load(struct publisher *p, const struct publisher_figures *f);

#endif
