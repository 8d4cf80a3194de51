#include "common/worker/kv_mirror.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/log.h"

struct kv_mirror {
    struct model *model;
    struct kv_memory kv;         /* on the device */
    uint64_t device[2], host[2]; /* addresses of the slabs */
    bool shared[2];
};

/* Lets the device reach the host's slabs. */
static enum status_code share(struct kv_mirror *k, struct status *st)
{
    const struct kv_geometry *g = model_get_geometry(k->model);
    size_t bytes[2] = {[HANDOFF_SLAB_PAGES] = k->kv.n_pages * g->page_bytes,
                       [HANDOFF_SLAB_SLOTS] = k->kv.n_slots * g->slot_bytes};

    for (int i = 0; i < 2; i++) {
        if (model_memory_share(k->model, (void *)(uintptr_t)k->host[i], bytes[i], st) != ST_OK)
            return status_wrap(st, "host memory beside the GPU's KV");
        k->shared[i] = true;
    }
    log_info("KV travels through host memory: %.1f MiB of it mirror the GPU's",
             (double)(bytes[0] + bytes[1]) / (1 << 20));
    return status_ok(st);
}

enum status_code kv_mirror_new(struct model *m, const struct kv_memory *host,
                               struct kv_memory *device, struct kv_mirror **out, struct status *st)
{
    struct kv_mirror *k = calloc(1, sizeof(*k));

    if (k == NULL)
        return status_set(st, ST_EXHAUSTED, "no memory for a mirror of the KV");
    k->model = m;
    k->host[HANDOFF_SLAB_PAGES] = host->pages.addr;
    k->host[HANDOFF_SLAB_SLOTS] = host->slots.addr;
    if (model_kv_alloc(m, host->n_pages, host->n_slots, &k->kv, st) != ST_OK) {
        status_wrap(st, "lower --max-total-tokens or --max-running-requests");
    } else if (share(k, st) == ST_OK) {
        k->device[HANDOFF_SLAB_PAGES] = k->kv.pages.addr;
        k->device[HANDOFF_SLAB_SLOTS] = k->kv.slots.addr;
        *device = k->kv;
        *out = k;
        return st->code;
    }
    kv_mirror_free(k);
    return st->code;
}

void kv_mirror_free(struct kv_mirror *k)
{
    if (k == NULL)
        return;
    for (int i = 0; i < 2; i++)
        if (k->shared[i])
            model_memory_unshare(k->model, (void *)(uintptr_t)k->host[i]);
    if (k->kv.n_pages > 0)
        model_kv_free(k->model, &k->kv);
    free(k);
}

/* What is moved, and which pieces end the groups; one block of memory. */
struct moves {
    struct kernel_piece *pieces;
    uint32_t *group_end, *crc;
};

static enum status_code moves_init(struct moves *v, const struct kv_mirror *k,
                                   const struct handoff_list *l, bool in, struct status *st)
{
    v->pieces =
        malloc(l->n_pieces * sizeof(*v->pieces) + 2 * (size_t)l->n_groups * sizeof(uint32_t) + 1);
    if (v->pieces == NULL)
        return status_set(st, ST_EXHAUSTED, "no memory for a list of %zu pieces", l->n_pieces);
    v->group_end = (uint32_t *)(void *)(v->pieces + l->n_pieces);
    v->crc = v->group_end + l->n_groups;
    memset(v->group_end, 0, l->n_groups * sizeof(*v->group_end));
    for (size_t i = 0; i < l->n_pieces; i++) {
        const struct transfer_piece *p = &l->pieces[i];
        struct dev_ptr device = {k->device[p->slab] + p->local_off};
        struct dev_ptr host = {k->host[p->slab] + p->local_off};

        v->pieces[i] = (struct kernel_piece){in ? device : host, in ? host : device, p->bytes};
        v->group_end[p->group] = (uint32_t)i + 1;
    }
    for (uint32_t g = 1; g < l->n_groups; g++) /* a page without bytes yet is a group, too */
        if (v->group_end[g] == 0)
            v->group_end[g] = v->group_end[g - 1];
    return status_ok(st);
}

static enum status_code move(struct kv_mirror *k, const struct handoff_list *l, bool in,
                             struct moves *v, struct status *st)
{
    if (moves_init(v, k, l, in, st) != ST_OK)
        return st->code;
    return model_memory_move(k->model, v->pieces, l->n_pieces, v->group_end, l->n_groups, in,
                             v->crc, st);
}

enum status_code kv_mirror_out(struct kv_mirror *k, const struct handoff_list *l, uint32_t *crc,
                               struct status *st)
{
    struct moves v = {0};

    if (move(k, l, false, &v, st) == ST_OK)
        for (uint32_t g = 0; g < l->n_groups; g++)
            crc[g] = v.crc[g];
    free(v.pieces);
    return st->code;
}

enum status_code kv_mirror_in(struct kv_mirror *k, const struct handoff_list *l,
                              const uint32_t *crc, struct status *st)
{
    struct moves v = {0};

    if (move(k, l, true, &v, st) == ST_OK)
        for (uint32_t g = 0; g < l->n_groups; g++)
            if (v.crc[g] != crc[g]) {
                status_set(st, ST_CORRUPT,
                           "checksum of group %" PRIu32 " of %" PRIu32 " is %08" PRIx32
                           " on the device, the sender's is %08" PRIx32,
                           g, l->n_groups, v.crc[g], crc[g]);
                break;
            }
    free(v.pieces);
    return st->code;
}
