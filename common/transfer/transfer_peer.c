#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/log.h"
#include "common/transfer/internal.h"

struct open_args {
    const char *name;
    const struct descriptor *desc;
    struct transfer_peer *peer; /* out */
};

/* From inside progress: only noted, handled by peers_tend(). */
static void on_error(void *arg, ucp_ep_h ep, ucs_status_t status)
{
    struct transfer_peer *p = arg;

    (void)ep;
    p->error_seen = true;
    p->error = status;
}

static void peer_free(struct transfer_peer *p)
{
    for (int i = 0; i < TRANSFER_SLABS_MAX; i++)
        if (p->rkeys[i] != NULL)
            ucp_rkey_destroy(p->rkeys[i]);
    pthread_mutex_destroy(&p->lock);
    free(p);
}

/* By force: outstanding requests end with an error, nothing more is written. */
static void close_endpoint(struct transfer_peer *p)
{
    ucp_request_param_t param = {.op_attr_mask = UCP_OP_ATTR_FIELD_FLAGS,
                                 .flags = UCP_EP_CLOSE_FLAG_FORCE};
    void *req;

    if (p->ep == NULL)
        return;
    req = ucp_ep_close_nbx(p->ep, &param);
    p->ep = NULL;
    if (UCS_PTR_IS_ERR(req))
        log_error("transfer: peer %s: endpoint does not close: %s", p->name,
                  ucs_status_string(UCS_PTR_STATUS(req)));
    else
        p->close_req = req;
}

static enum status_code connect_endpoint(struct transfer_peer *p, const struct descriptor *d,
                                         struct status *st)
{
    ucp_ep_params_t params = {
        .field_mask = UCP_EP_PARAM_FIELD_REMOTE_ADDRESS | UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE |
                      UCP_EP_PARAM_FIELD_ERR_HANDLER,
        .address = d->address,
        .err_mode = UCP_ERR_HANDLING_MODE_PEER,
        .err_handler = {on_error, p},
    };
    ucs_status_t rc = ucp_ep_create(p->t->worker, &params, &p->ep);

    if (rc != UCS_OK)
        return status_set(st, ST_UNAVAILABLE,
                          "no endpoint with the transports %s: %s (are both workers allowed the "
                          "same transports, and on one node where it is shared memory?)",
                          p->t->plan.tls, ucs_status_string(rc));
    for (int i = 0; i < TRANSFER_SLABS_MAX; i++) {
        p->slabs[i] = d->slabs[i];
        p->slabs[i].rkey = NULL;
        if (d->slabs[i].bytes == 0)
            continue;
        rc = ucp_ep_rkey_unpack(p->ep, d->slabs[i].rkey, &p->rkeys[i]);
        if (rc != UCS_OK)
            return status_set(st, ST_UNAVAILABLE, "remote key of slab %d: %s", i,
                              ucs_status_string(rc));
    }
    return status_ok(st);
}

static enum status_code peer_open(struct transfer *t, void *arg, struct status *st)
{
    struct open_args *a = arg;
    struct transfer_peer *p = calloc(1, sizeof(*p));

    if (p == NULL)
        return status_set(st, ST_EXHAUSTED, "no memory for a peer");
    p->t = t;
    p->state = PEER_OPEN;
    p->close.type = CMD_CLOSE;
    snprintf(p->name, sizeof(p->name), "%s", a->name);
    snprintf(p->transport, sizeof(p->transport), "unknown");
    pthread_mutex_init(&p->lock, NULL);
    p->next = t->peers;
    t->peers = p;
    if (connect_endpoint(p, a->desc, st) != ST_OK) {
        peer_fail(p, PEER_CLOSING, st->code, st->msg); /* freed by peers_tend() */
        return st->code;
    }
    log_debug("transfer: peer %s: opened, incarnation %016" PRIx64, p->name, a->desc->incarnation);
    a->peer = p;
    return status_ok(st);
}

enum status_code transfer_peer_open(struct transfer *t, const char *name, const void *desc,
                                    size_t desc_len, struct transfer_peer **out, struct status *st)
{
    struct descriptor d;
    struct open_args a = {.name = name, .desc = &d};

    if (descriptor_read(desc, desc_len, &d, st) != ST_OK ||
        transfer_call(t, peer_open, &a, st) != ST_OK)
        return status_wrap(st, "peer %s", name);
    *out = a.peer;
    return status_ok(st);
}

void peer_fail(struct transfer_peer *p, enum peer_state state, enum status_code code,
               const char *why)
{
    if (p->state < state)
        p->state = state;
    status_set(&p->why, code, "peer %s: %s", p->name, why);
    puts_stop(p, NULL, &p->why);
    close_endpoint(p);
}

void peer_begin_close(struct msg *m)
{
    struct transfer_peer *p =
        (struct transfer_peer *)((char *)m - offsetof(struct transfer_peer, close));

    peer_fail(p, PEER_CLOSING, ST_UNAVAILABLE, "closed by this worker");
}

void transfer_peer_close(struct transfer_peer *p, void (*on_closed)(void *arg), void *arg)
{
    p->on_closed = on_closed;
    p->on_closed_arg = arg;
    mailbox_push(p->t->box, &p->close);
}

void peers_close_all(struct transfer *t)
{
    for (struct transfer_peer *p = t->peers; p != NULL; p = p->next)
        if (p->state != PEER_CLOSING)
            peer_fail(p, PEER_CLOSING, ST_CANCELLED, "this worker stops");
}

/* Has the endpoint's close ended? */
static bool close_has_ended(struct transfer_peer *p)
{
    if (p->close_req != NULL) {
        if (ucp_request_check_status(p->close_req) == UCS_INPROGRESS)
            return false;
        ucp_request_free(p->close_req);
        p->close_req = NULL;
    }
    return p->ep == NULL;
}

int peers_tend(struct transfer *t)
{
    int sleep_ms = -1;

    for (struct transfer_peer **at = &t->peers; *at != NULL;) {
        struct transfer_peer *p = *at;

        if (p->error_seen && p->state == PEER_OPEN) {
            log_warn("transfer: peer %s: lost: %s", p->name, ucs_status_string(p->error));
            peer_fail(p, PEER_FAILED, ST_UNAVAILABLE, ucs_status_string(p->error));
        }
        if (p->state == PEER_OPEN) {
            if (p->window_requests > 0 && sleep_ms < 0)
                sleep_ms = PENDING_MS;
        } else if (!close_has_ended(p) || p->puts != NULL) {
            sleep_ms = TEND_MS;
        } else if (p->state == PEER_CLOSING) {
            *at = p->next;
            if (p->on_closed != NULL)
                p->on_closed(p->on_closed_arg);
            peer_free(p);
            continue;
        }
        at = &p->next;
    }
    return sleep_ms;
}

void peer_note_transport(struct transfer_peer *p)
{
    char text[sizeof(p->transport)];

    if (p->transport_known || p->ep == NULL)
        return;
    transport_read_back(p->ep, text, sizeof(text));
    pthread_mutex_lock(&p->lock);
    memcpy(p->transport, text, sizeof(text));
    pthread_mutex_unlock(&p->lock);
    p->transport_known = true;
    log_info("transfer: peer %s: transport %s", p->name, text);
}

void transfer_peer_transport(struct transfer_peer *p, char *buf, size_t n)
{
    pthread_mutex_lock(&p->lock);
    snprintf(buf, n, "%s", p->transport);
    pthread_mutex_unlock(&p->lock);
}
