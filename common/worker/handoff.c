#include "common/worker/handoff.h"

#include <stdlib.h>

enum { RUNS_MAX = 6 * KV_LAYERS_MAX, SLOT_GROUP_BYTES = 1 << 20 };

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

/* The end of the slot's group that begins with the run at `at`. */
static size_t slot_group_end(const struct kv_geometry *g, const struct kv_run *runs, size_t n,
                             size_t at)
{
    uint64_t least = g->slot_bytes / (HANDOFF_SLOT_GROUPS_MAX - 1) + 1, bytes = 0;

    if (least < SLOT_GROUP_BYTES)
        least = SLOT_GROUP_BYTES;
    while (at < n && bytes < least)
        bytes += runs[at++].bytes;
    return at;
}

uint32_t handoff_slot_groups(const struct kv_geometry *g, uint64_t n_tokens)
{
    struct kv_run runs[RUNS_MAX];
    size_t n = kv_slot_runs(g, n_tokens, runs, RUNS_MAX);
    uint32_t n_groups = 0;

    for (size_t at = 0; at < n || n_groups == 0; n_groups++)
        at = slot_group_end(g, runs, n, at);
    return n_groups;
}

static void add_slot(struct handoff_list *l, const struct kv_geometry *g,
                     const struct handoff_units *u, uint64_t n_tokens, uint32_t first, uint32_t end)
{
    struct kv_run runs[RUNS_MAX];
    size_t n = kv_slot_runs(g, n_tokens, runs, RUNS_MAX), at = 0;

    for (uint32_t i = 0; i < end; i++) {
        size_t to = slot_group_end(g, runs, n, at);

        if (i >= first)
            add_runs(l, runs + at, to - at, HANDOFF_SLAB_SLOTS, u->local_slot * g->slot_bytes,
                     u->remote_slot * g->slot_bytes);
        at = to;
    }
}

enum status_code handoff_list_init(struct handoff_list *out, const struct kv_geometry *g,
                                   const struct handoff_units *u, uint64_t n_tokens, uint32_t first,
                                   uint32_t end, struct status *st)
{
    struct kv_run runs[RUNS_MAX];
    uint32_t n_pages = kv_pages_for(n_tokens);
    /* Full pages are one run each; only the last page and the slot come in many. */
    size_t cap = (size_t)(end - first) + 2 * (size_t)RUNS_MAX;

    *out = (struct handoff_list){0};
    out->pieces = malloc(cap * sizeof(*out->pieces));
    if (out->pieces == NULL)
        return status_set(st, ST_EXHAUSTED, "no memory for a list of %zu pieces", cap);
    for (uint32_t i = first; i < end && i < n_pages; i++) {
        size_t n = kv_page_runs(g, tokens_in_page(n_tokens, i), runs, RUNS_MAX);

        add_runs(out, runs, n, HANDOFF_SLAB_PAGES, u->local_pages[i] * g->page_bytes,
                 u->remote_pages[i] * g->page_bytes);
    }
    if (end > n_pages)
        add_slot(out, g, u, n_tokens, first > n_pages ? first - n_pages : 0, end - n_pages);
    return status_ok(st);
}

void handoff_list_deinit(struct handoff_list *l)
{
    free(l->pieces);
    *l = (struct handoff_list){0};
}
