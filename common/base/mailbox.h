/*
 * mailbox: how one thread hands a message to another.
 *
 * Many producers, one consumer. The consumer sleeps on mailbox_fd() (an eventfd: poll it, or give
 * it to libevent) or in mailbox_wait(). A message is a caller's struct that begins with struct msg;
 * the mailbox owns it in flight, the consumer after mailbox_pop().
 *
 * Promises  messages of one producer arrive in the order pushed; the eventfd is written only when
 *           the consumer has found the box empty, so a busy one costs its producers no system call.
 * Threads   push: any; pop, wait, fd: the consumer.
 */
#ifndef BATON_COMMON_BASE_MAILBOX_H
#define BATON_COMMON_BASE_MAILBOX_H

#include <stdbool.h>
#include <stdint.h>

#include "common/base/status.h"

/** First member of every message. */
struct msg {
    struct msg *next; /* the mailbox's */
    uint32_t type;    /* an enum of the receiving binary */
};

struct mailbox;

/** @return ST_OK, ST_EXHAUSTED. The caller frees with mailbox_free(). */
enum status_code mailbox_new(struct mailbox **out, struct status *st);

/** Frees the box. Messages still inside are passed to drop (may be NULL: then there must be none).
 */
void mailbox_free(struct mailbox *box, void (*drop)(struct msg *));

/** Hands m over; never blocks, never fails. */
void mailbox_push(struct mailbox *box, struct msg *m);

/** The oldest message, or NULL. Clears the eventfd when there is none. */
struct msg *mailbox_pop(struct mailbox *box);

/** Sleeps until a message may be there or timeout_ms (-1: no bound) has passed. */
void mailbox_wait(struct mailbox *box, int timeout_ms);

/** Readable while messages wait, and until a pop has found none; level-triggered. */
int mailbox_fd(const struct mailbox *box);

#endif
