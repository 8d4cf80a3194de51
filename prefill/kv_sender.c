#include "prefill/kv_sender.h"

#include <stdlib.h>
#include <string.h>

#include "common/base/clock.h"
#include "common/worker/handoff.h"

/* What a completion needs to find its way home. */
struct put {
    struct mailbox *engine;
    struct handoff *handoff;
    uint32_t first_group;
    uint32_t n_crc; /* 0: the transfer's checksums count */
    uint32_t crc[]; /* [n_crc] of the device's bytes */
};

static void on_done(void *arg, const struct transfer_result *r)
{
    struct put *put = arg;
    size_t crc_bytes = r->n_groups * sizeof(uint32_t);
    struct msg_put_done *m = malloc(sizeof(*m) + crc_bytes);

    if (m == NULL)
        abort(); /* the handoff's pages would stay taken for ever */
    *m = (struct msg_put_done){
        .base.type = PM_PUT_DONE,
        .handoff = put->handoff,
        .status = r->status,
        .bytes = r->bytes,
        .elapsed_us = r->elapsed_us,
        .ended_us = clock_now_us(),
        .first_group = put->first_group,
        .n_groups = r->n_groups,
    };
    if (crc_bytes > 0)
        memcpy(m->crc, put->n_crc == r->n_groups ? put->crc : r->crc, crc_bytes);
    mailbox_push(put->engine, &m->base);
    free(put);
}

enum status_code kv_sender_post(struct handoff *h, const struct kv_geometry *g, uint32_t end_page,
                                bool last, struct kv_mirror *mirror, struct mailbox *engine,
                                struct status *st)
{
    struct handoff_units units = {h->seq.pages, h->remote_pages, h->seq.slot, h->remote_slot};
    struct handoff_list list = {0};
    struct put *put = NULL;

    if (h->peer->transfer == NULL)
        return status_set(st, ST_UNAVAILABLE, "decode worker %s is gone", h->peer->name);
    if (end_page <= h->n_pages_sent && !last)
        return status_ok(st);
    if (handoff_list_init(&list, g, &units, h->n_prompt, h->n_pages_sent, end_page, last, st) !=
        ST_OK)
        goto done;
    put = malloc(sizeof(*put) + list.n_groups * sizeof(*put->crc));
    if (put == NULL) {
        status_set(st, ST_EXHAUSTED, "no memory for a transfer");
        goto done;
    }
    *put = (struct put){engine, h, h->n_pages_sent - h->n_present, 0};
    if (mirror != NULL) {
        if (kv_mirror_out(mirror, &list, put->crc, st) != ST_OK)
            goto done;
        put->n_crc = list.n_groups;
    }
    if (transfer_put(h->peer->transfer, h->id, list.pieces, list.n_pieces, list.n_groups, on_done,
                     put, st) != ST_OK)
        goto done;
    put = NULL; /* the completion's */
    if (last) {
        h->last_bytes = list.bytes;
        transfer_hurry(h->peer->transfer, h->id); /* the first token waits for these */
    }
    h->n_puts++;
    h->n_pages_sent = end_page;
done:
    free(put);
    handoff_list_deinit(&list);
    return st->code;
}

void kv_sender_cancel(struct handoff *h)
{
    if (h->n_puts > 0 && h->peer->transfer != NULL)
        transfer_cancel(h->peer->transfer, h->id);
}
