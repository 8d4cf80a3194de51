#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/log.h"
#include "common/transfer/lifeline.h"
#include "common/transfer/link_probe.h"

struct open_args {
    const char *name;
    const struct descriptor *desc;
    struct transfer_peer *peer; /* out */
};

static void peer_free(struct transfer_peer *p)
{
    lifeline_free(p->lifeline);
    if (p->lane != NULL)
        p->lane->free(p);
    pthread_mutex_destroy(&p->lock);
    free(p);
}

/* UCX where it leads to the peer natively, else a socket, where that is allowed: UCX would emulate
 * puts on TCP, slowly, and abort a receiver whose sender dies at the wrong moment. */
static enum status_code open_lane(struct transfer_peer *p, const struct descriptor *d,
                                  struct status *st)
{
    struct status ucx;

    status_set(&ucx, ST_UNAVAILABLE, "not tried");
    if (p->t->plan.ucx && lane_ucx_open(p, d, &ucx) == ST_OK)
        return status_ok(st);
    if (!p->t->plan.sockets) {
        *st = ucx;
        return st->code;
    }
    if (p->t->plan.ucx)
        log_warn("transfer: peer %s: KV goes over TCP: nothing faster leads there (%s)", p->name,
                 ucx.msg);
    return lane_tcp_open(p, d, st);
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
    for (int i = 0; i < DESCRIPTOR_SLABS; i++) {
        p->slabs[i] = a->desc->slabs[i];
        p->slabs[i].rkey = NULL;
    }
    if (lifeline_new(p, a->desc, st) != ST_OK || open_lane(p, a->desc, st) != ST_OK) {
        peer_free(p);
        return st->code;
    }
    p->next = t->peers;
    t->peers = p;
    lifeline_start(p->lifeline);
    link_probe_start(p);
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
    if (state == PEER_FAILED)
        log_write(p->puts != NULL ? LOG_WARN : LOG_INFO, "transfer: peer %s: lost: %s", p->name,
                  why);
    if (p->state < state)
        p->state = state;
    status_set(&p->why, code, "peer %s: %s", p->name, why);
    puts_stop(p, NULL, &p->why);
    p->lane->close(p);
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
    for (struct transfer_peer *p = t->peers; p != NULL; p = p->next) {
        if (p->state != PEER_CLOSING)
            peer_fail(p, PEER_CLOSING, ST_CANCELLED, "this worker stops");
        else if (!p->hurried)
            p->lane->close(p);
        p->hurried = true;
    }
}

void peer_note_transport(struct transfer_peer *p)
{
    char text[sizeof(p->transport)];

    if (p->transport_known || p->state != PEER_OPEN)
        return;
    p->lane->describe(p, text, sizeof(text));
    pthread_mutex_lock(&p->lock);
    memcpy(p->transport, text, sizeof(text));
    pthread_mutex_unlock(&p->lock);
    p->transport_known = true;
    log_info("transfer: peer %s: transport %s", p->name, text);
}

int peers_tend(struct transfer *t)
{
    int sleep_ms = LANE_FOREVER;

    for (struct transfer_peer **at = &t->peers; *at != NULL;) {
        struct transfer_peer *p = *at;
        int ms = p->lane->tend(p);

        if (ms == LANE_GONE && p->puts == NULL)
            lifeline_bye(p->lifeline);
        ms = ms == LANE_GONE ? ms : sooner(ms, lifeline_tend(p->lifeline));
        if (ms == LANE_GONE && p->puts == NULL && p->state == PEER_CLOSING) {
            *at = p->next;
            if (p->on_closed != NULL)
                p->on_closed(p->on_closed_arg);
            peer_free(p);
            continue;
        }
        if (ms >= 0 && (sleep_ms < 0 || ms < sleep_ms))
            sleep_ms = ms;
        at = &p->next;
    }
    return sleep_ms;
}

void transfer_peer_transport(struct transfer_peer *p, char *buf, size_t n)
{
    pthread_mutex_lock(&p->lock);
    snprintf(buf, n, "%s", p->transport);
    pthread_mutex_unlock(&p->lock);
}

bool transfer_peer_link(struct transfer_peer *p, struct transfer_link *out)
{
    bool known;

    pthread_mutex_lock(&p->lock);
    known = p->link_known;
    if (known)
        *out = p->link;
    pthread_mutex_unlock(&p->lock);
    return known;
}
