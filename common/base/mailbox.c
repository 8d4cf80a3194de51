#include "common/base/mailbox.h"

#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

struct mailbox {
    pthread_mutex_t
        lock;         /* guards the list; held for a few instructions, never with another lock */
    struct msg *head; /* oldest */
    struct msg *tail; /* newest; undefined while head is NULL */
    bool signalled;   /* fd is readable: while messages wait, and until the consumer finds none */
    int fd;
};

enum status_code mailbox_new(struct mailbox **out, struct status *st)
{
    struct mailbox *box = calloc(1, sizeof(*box));

    if (box == NULL)
        return status_set(st, ST_EXHAUSTED, "no memory for a mailbox");
    box->fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (box->fd < 0) {
        free(box);
        return status_set(st, ST_EXHAUSTED,
                          "no eventfd: raise the limit of open files (ulimit -n)");
    }
    pthread_mutex_init(&box->lock, NULL);
    *out = box;
    return status_ok(st);
}

void mailbox_free(struct mailbox *box, void (*drop)(struct msg *))
{
    if (box == NULL)
        return;
    while (drop != NULL && box->head != NULL) {
        struct msg *m = box->head;

        box->head = m->next;
        drop(m);
    }
    close(box->fd);
    pthread_mutex_destroy(&box->lock);
    free(box);
}

void mailbox_push(struct mailbox *box, struct msg *m)
{
    m->next = NULL;
    pthread_mutex_lock(&box->lock);
    if (box->head == NULL)
        box->head = m;
    else
        box->tail->next = m;
    box->tail = m;
    if (!box->signalled) {
        box->signalled = true;
        eventfd_write(box->fd, 1);
    }
    pthread_mutex_unlock(&box->lock);
}

struct msg *mailbox_pop(struct mailbox *box)
{
    struct msg *m;

    pthread_mutex_lock(&box->lock);
    m = box->head;
    if (m != NULL) {
        box->head = m->next;
    } else if (box->signalled) {
        eventfd_t ignored;

        /* Not with the last message: one that comes while it is handled costs no system call then.
         * Inside the lock, so that a push that follows finds the fd cleared and signals again. */
        (void)eventfd_read(box->fd, &ignored);
        box->signalled = false;
    }
    pthread_mutex_unlock(&box->lock);
    return m;
}

void mailbox_wait(struct mailbox *box, int timeout_ms)
{
    struct pollfd p = {.fd = box->fd, .events = POLLIN};

    (void)poll(&p, 1, timeout_ms);
}

int mailbox_fd(const struct mailbox *box)
{
    return box->fd;
}
