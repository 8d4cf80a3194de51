#include "decode/sessions.h"

#include <stdlib.h>

/* How long a prefill worker may take to accept a connection. */
enum { CONNECT_TIMEOUT_MS = 3000 };

void decode_msg_free(struct msg *m)
{
    struct msg_unpacked *u = (struct msg_unpacked *)m;

    if (m->type == DM_ROUTER_REQUEST)
        baton__v1__decode_request__free_unpacked(u->request, NULL);
    else if (m->type == DM_PREFILL_REPLY)
        baton__v1__prefill_reply__free_unpacked(u->reply, NULL);
    free(m);
}

void session_link_free(struct session_link *link)
{
    if (link == NULL)
        return;
    rpc_session_unref(link->session);
    free(link);
}

static void push_link(struct session_link *link, enum decode_msg_type type,
                      const struct status *why)
{
    struct msg_link *m = calloc(1, sizeof(*m));

    if (m == NULL)
        abort(); /* without it the engine would never learn that a peer came or went */
    m->base.type = type;
    m->link = link;
    if (why != NULL)
        m->why = *why;
    mailbox_push(link->engine, &m->base);
}

/* Pushes an unpacked message; on NULL (bad bytes) ends the session with the reason. */
static void push_unpacked(struct session_link *link, struct rpc_session *s,
                          enum decode_msg_type type, void *unpacked, size_t len)
{
    struct msg_unpacked *m;
    struct status st;

    if (unpacked == NULL) {
        status_set(&st, ST_INVALID, "a message of %zu bytes cannot be read: not our protocol", len);
        rpc_session_close(s, &st);
        return;
    }
    m = malloc(sizeof(*m));
    if (m == NULL)
        abort();
    *m = (struct msg_unpacked){.base.type = type, .link = link};
    if (type == DM_ROUTER_REQUEST)
        m->request = unpacked;
    else
        m->reply = unpacked;
    mailbox_push(link->engine, &m->base);
}

/* ---- sessions of routers ---- */

static void *router_on_open(void *arg, struct rpc_session *s, struct status *st)
{
    struct session_link *link = calloc(1, sizeof(*link));

    if (link == NULL) {
        status_set(st, ST_EXHAUSTED, "decode worker: no memory for a session");
        return NULL;
    }
    link->session = rpc_session_ref(s);
    link->engine = arg;
    push_link(link, DM_ROUTER_OPENED, NULL);
    return link;
}

static void router_on_message(void *arg, struct rpc_session *s, const void *data, size_t len)
{
    push_unpacked(arg, s, DM_ROUTER_REQUEST, baton__v1__decode_request__unpack(NULL, len, data),
                  len);
}

static void router_on_close(void *arg, struct rpc_session *s, const struct status *why)
{
    (void)s;
    push_link(arg, DM_ROUTER_CLOSED, why);
}

struct rpc_method decode_session_method(struct mailbox *engine)
{
    return (struct rpc_method){
        .path = "/baton.v1.Decode/Session",
        .on_open = router_on_open,
        .callbacks = {.on_message = router_on_message, .on_close = router_on_close},
        .arg = engine,
    };
}

/* ---- sessions with prefill workers ---- */

static void prefill_on_message(void *arg, struct rpc_session *s, const void *data, size_t len)
{
    push_unpacked(arg, s, DM_PREFILL_REPLY, baton__v1__prefill_reply__unpack(NULL, len, data), len);
}

static void prefill_on_close(void *arg, struct rpc_session *s, const struct status *why)
{
    (void)s;
    push_link(arg, DM_PREFILL_CLOSED, why);
}

enum status_code decode_open_prefill(struct rpc_client *client, struct mailbox *engine, void *owner,
                                     struct session_link **out, struct status *st)
{
    static const struct rpc_session_callbacks callbacks = {prefill_on_message, prefill_on_close};
    struct session_link *link = calloc(1, sizeof(*link));
    struct rpc_session *s;

    if (link == NULL)
        return status_set(st, ST_EXHAUSTED, "no memory for a session");
    link->engine = engine;
    link->owner = owner;
    if (rpc_client_open(client, "/baton.v1.Prefill/Session", CONNECT_TIMEOUT_MS, &callbacks, link,
                        &s, st) != ST_OK) {
        free(link);
        return st->code;
    }
    link->session = s;
    *out = link;
    return status_ok(st);
}
