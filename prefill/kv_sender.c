#include "prefill/kv_sender.h"

#include <stdlib.h>
#include <string.h>

#include "common/base/clock.h"
#include "common/transfer/part.h"
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

/* Posts the next part of l, from *at on.
 * @param crc  of the device's bytes, [l->n_groups]; NULL: the transfer's count */
static enum status_code post_part(struct handoff *h, struct handoff_list *l, const uint32_t *crc,
                                  struct transfer_place *at, uint64_t at_least,
                                  struct mailbox *engine, struct status *st)
{
    struct transfer_place end = transfer_part(l->pieces, l->n_pieces, l->n_groups, *at, at_least);
    struct put *put = malloc(sizeof(*put) + (end.group - at->group) * sizeof(*put->crc));

    if (put == NULL)
        return status_set(st, ST_EXHAUSTED, "no memory for a transfer");
    *put = (struct put){engine, h, h->n_groups_sent - h->n_present, 0};
    if (crc != NULL) {
        put->n_crc = end.group - at->group;
        memcpy(put->crc, crc + at->group, put->n_crc * sizeof(*crc));
    }
    if (transfer_put(h->peer->transfer, h->id, l->pieces + at->piece, end.piece - at->piece,
                     end.group - at->group, on_done, put, st) != ST_OK) {
        free(put);
        return st->code;
    }
    h->n_puts++;
    h->n_groups_sent += end.group - at->group;
    *at = end;
    return st->code;
}

enum status_code kv_sender_post(struct handoff *h, const struct kv_geometry *g, uint32_t end_page,
                                bool last, struct kv_mirror *mirror, struct mailbox *engine,
                                struct status *st)
{
    struct handoff_units units = {h->seq.pages, h->remote_pages, h->seq.slot, h->remote_slot};
    uint32_t end = last ? h->n_pages + handoff_slot_groups(g, h->n_prompt) : end_page;
    struct handoff_list list = {0};
    struct transfer_place at = {0};
    uint32_t *crc = NULL;

    status_ok(st);
    if (h->peer->transfer == NULL)
        return status_set(st, ST_UNAVAILABLE, "decode worker %s is gone", h->peer->name);
    if (end <= h->n_groups_sent)
        return st->code;
    if (handoff_list_init(&list, g, &units, h->n_prompt, h->n_groups_sent, end, st) != ST_OK)
        goto done;
    if (mirror != NULL) {
        crc = malloc(list.n_groups * sizeof(*crc));
        if (crc == NULL) {
            status_set(st, ST_EXHAUSTED, "no memory for a transfer");
            goto done;
        }
        if (kv_mirror_out(mirror, &list, crc, st) != ST_OK)
            goto done;
    }
    while (at.group < list.n_groups && st->code == ST_OK)
        post_part(h, &list, crc, &at, last ? TRANSFER_PART_BYTES : UINT64_MAX, engine, st);
    if (last && st->code == ST_OK) {
        h->last_bytes = list.bytes;
        transfer_hurry(h->peer->transfer, h->id); /* the first token waits for these */
    }
done:
    free(crc);
    handoff_list_deinit(&list);
    return st->code;
}

void kv_sender_cancel(struct handoff *h)
{
    if (h->n_puts > 0 && h->peer->transfer != NULL)
        transfer_cancel(h->peer->transfer, h->id);
}
