#include "prefill/session.h"

#include <stdlib.h>

#include "prefill/messages.h"

void prefill_msg_free(struct msg *m)
{
    if (m->type == PM_REQUEST)
        baton__v1__prefill_request__free_unpacked(((struct msg_request *)m)->request, NULL);
    free(m);
}

static void push_link(struct prefill_link *link, enum prefill_msg_type type)
{
    struct msg_link *m = malloc(sizeof(*m));

    if (m == NULL)
        abort(); /* without it the engine would never learn that a peer came or went */
    *m = (struct msg_link){.base.type = type, .link = link};
    mailbox_push(link->engine, &m->base);
}

static void *on_open(void *arg, struct rpc_session *s, struct status *st)
{
    struct prefill_link *link = calloc(1, sizeof(*link));

    if (link == NULL) {
        status_set(st, ST_EXHAUSTED, "prefill worker: no memory for a session");
        return NULL;
    }
    link->session = rpc_session_ref(s);
    link->engine = arg;
    push_link(link, PM_OPENED);
    return link;
}

static void on_message(void *arg, struct rpc_session *s, const void *data, size_t len)
{
    struct prefill_link *link = arg;
    struct msg_request *m = malloc(sizeof(*m));
    struct status st;

    if (m == NULL) {
        status_set(&st, ST_EXHAUSTED, "prefill worker: no memory for a message of %zu bytes", len);
        rpc_session_close(s, &st);
        return;
    }
    m->base.type = PM_REQUEST;
    m->link = link;
    m->request = baton__v1__prefill_request__unpack(NULL, len, data);
    if (m->request == NULL) {
        free(m);
        status_set(&st, ST_INVALID, "a message of %zu bytes is no PrefillRequest", len);
        rpc_session_close(s, &st);
        return;
    }
    mailbox_push(link->engine, &m->base);
}

static void on_close(void *arg, struct rpc_session *s, const struct status *why)
{
    (void)s;
    (void)why;
    push_link(arg, PM_CLOSED);
}

struct rpc_method prefill_session_method(struct mailbox *engine)
{
    return (struct rpc_method){
        .path = "/baton.v1.Prefill/Session",
        .on_open = on_open,
        .callbacks = {.on_message = on_message, .on_close = on_close},
        .arg = engine,
    };
}
