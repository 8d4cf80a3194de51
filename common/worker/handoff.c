#include "common/worker/handoff.h"

#include <stdlib.h>

enum { RUNS_MAX = 6 * KV_LAYERS_MAX };

static uint32_t tokens_in_page(uint64_t n_tokens, uint32_t page)
{
    uint64_t left = n_tokens - (uint64_t)page * KV_PAGE_TOKENS;

    return left < KV_PAGE_TOKENS ? (uint32_t)left : KV_PAGE_TOKENS;
}

static void add_runs(struct handoff_list *l, const struct kv_run *runs, size_t n, int slab,
                     uint64_t local, uint64_t remote)
{
    for (size_t i = 0; i < n; i++) {
        l->pieces[l->n_pieces++] = (struct transfer_piece){
            .slab = slab,
            .local_off = local + runs[i].offset,
            .remote_off = remote + runs[i].offset,
            .bytes = runs[i].bytes,
            .group = l->n_groups,
        };
        l->bytes += runs[i].bytes;
    }
    l->n_groups++;
}

enum status_code handoff_list_init(struct handoff_list *out, const struct kv_geometry *g,
                                   const struct handoff_units *u, uint64_t n_tokens,
                                   uint32_t first_page, uint32_t end_page, bool with_slot,
                                   struct status *st)
{
    struct kv_run runs[RUNS_MAX];
    /* Full pages are one run each; only the last page and the slot come in many. */
    size_t cap = (size_t)(end_page - first_page) + 2 * (size_t)RUNS_MAX;

    *out = (struct handoff_list){0};
    out->pieces = malloc(cap * sizeof(*out->pieces));
    if (out->pieces == NULL)
        return status_set(st, ST_EXHAUSTED, "no memory for a list of %zu pieces", cap);
    for (uint32_t i = first_page; i < end_page; i++) {
        size_t n = kv_page_runs(g, tokens_in_page(n_tokens, i), runs, RUNS_MAX);

        add_runs(out, runs, n, HANDOFF_SLAB_PAGES, u->local_pages[i] * g->page_bytes,
                 u->remote_pages[i] * g->page_bytes);
    }
    if (with_slot) {
        size_t n = kv_slot_runs(g, n_tokens, runs, RUNS_MAX);

        add_runs(out, runs, n, HANDOFF_SLAB_SLOTS, u->local_slot * g->slot_bytes,
                 u->remote_slot * g->slot_bytes);
    }
    return status_ok(st);
}

void handoff_list_deinit(struct handoff_list *l)
{
    free(l->pieces);
    *l = (struct handoff_list){0};
}
