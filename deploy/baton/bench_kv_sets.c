#include "deploy/baton/bench_kv.h"

#include <stdlib.h>

enum { PAGE_TOKENS = 256 };

/* Bytes of a logical page, page-first (common/kv/geometry.h with the released configurations). */
static const uint64_t page_bytes[2] = {985664, 1410928};

/* The same of Flash where every layer has pools of its own: how many pieces of which length;
 * compressed entries and index keys of 21 layers, and entries of the 20 that compress more. */
static const struct {
    int n;
    uint64_t bytes;
} layer_pieces[] = {{21, 37376}, {21, 4352}, {20, 1168}};

enum { N_KINDS = 3 };

static uint64_t bytes_of_page(bool pro, enum kv_layout layout)
{
    uint64_t sum = 0;

    if (layout == KV_LAYOUT_PAGES)
        return page_bytes[pro];
    for (int k = 0; k < N_KINDS; k++)
        sum += (uint64_t)layer_pieces[k].n * layer_pieces[k].bytes;
    return sum;
}

uint64_t kv_set_bytes(bool pro, uint32_t tokens, enum kv_layout layout)
{
    return (tokens + PAGE_TOKENS - 1) / PAGE_TOKENS * bytes_of_page(pro, layout);
}

static uint64_t next_random(uint64_t *state)
{
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return *state >> 33;
}

static void shuffle(uint32_t *order, size_t n, uint64_t *seed)
{
    for (size_t i = 0; i < n; i++)
        order[i] = (uint32_t)i;
    for (size_t i = n; i > 1; i--) {
        size_t j = next_random(seed) % i;
        uint32_t t = order[i - 1];

        order[i - 1] = order[j];
        order[j] = t;
    }
}

/* Gives the pieces places from base on, in a shuffled order. */
static bool place(struct kv_set *set, bool remote, uint64_t base, uint64_t *seed)
{
    uint32_t *order = malloc(set->n_pieces * sizeof(*order));

    if (order == NULL)
        return false;
    shuffle(order, set->n_pieces, seed);
    for (size_t i = 0; i < set->n_pieces; i++) {
        struct transfer_piece *p = &set->pieces[order[i]];

        *(remote ? &p->remote_off : &p->local_off) = base;
        base += p->bytes;
    }
    free(order);
    return true;
}

bool kv_set_init(struct kv_set *set, bool pro, uint32_t tokens, enum kv_layout layout,
                 uint64_t base, uint64_t seed)
{
    uint32_t n_pages = (tokens + PAGE_TOKENS - 1) / PAGE_TOKENS;
    size_t per_page = 0, n = 0;

    for (int k = 0; k < N_KINDS; k++)
        per_page += layout == KV_LAYOUT_PAGES ? k == 0 : (size_t)layer_pieces[k].n;
    *set = (struct kv_set){.n_pieces = n_pages * per_page, .n_groups = n_pages};
    set->pieces = calloc(set->n_pieces, sizeof(*set->pieces));
    if (set->pieces == NULL)
        return false;
    for (uint32_t page = 0; page < n_pages; page++)
        for (size_t i = 0, kind = 0, of_kind = 0; i < per_page; i++) {
            struct transfer_piece *p = &set->pieces[n++];

            p->group = page;
            p->bytes = page_bytes[pro];
            if (layout == KV_LAYOUT_LAYERS) {
                p->bytes = layer_pieces[kind].bytes;
                if (++of_kind == (size_t)layer_pieces[kind].n) {
                    kind++;
                    of_kind = 0;
                }
            }
            set->bytes += p->bytes;
        }
    return place(set, false, base, &seed) && place(set, true, base, &seed);
}

void kv_set_deinit(struct kv_set *set)
{
    free(set->pieces);
    *set = (struct kv_set){0};
}
