/*
 * text_pool: threads for text work that would stall an event loop: rendering and tokenizing large
 * requests.
 *
 * Promises  each work item comes back to its mailbox exactly once, also when the pool stops: then
 *           without having run.
 * Threads   text_pool_submit: any; run: a pool thread, with that thread's scratch.
 * Lifetime  text_pool_stop() before the mailboxes are freed.
 */
#ifndef BATON_ROUTER_TEXT_POOL_H
#define BATON_ROUTER_TEXT_POOL_H

#include "common/base/mailbox.h"
#include "router/text_task.h"

/* First member of what is to be done. */
struct text_work {
    struct msg base; /* pushed to the mailbox when done; type is the submitter's */
    struct mailbox *mailbox;
    void (*run)(struct text_work *w, struct text_scratch *scratch);
    bool ran;
};

struct text_pool;

/**
 * @param queue_max    items that may wait
 * @param words_bytes  of each thread's word cache
 */
enum status_code text_pool_start(int n_threads, size_t queue_max, size_t words_bytes,
                                 struct text_pool **out, struct status *st);

/** Hands w over until its message arrives. @return ST_OK; ST_EXHAUSTED: the queue is full */
enum status_code text_pool_submit(struct text_pool *p, struct text_work *w, struct status *st);

/** Ends the threads after what they are doing; what waits comes back unrun. Frees the pool. */
void text_pool_stop(struct text_pool *p);

#endif
