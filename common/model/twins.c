#include "common/model/twins.h"

static struct dev_ptr alloc(struct twins *t, int rank, size_t bytes)
{
    struct kernels *k = &t->ranks[rank].kernels;

    return k->ops->dev_alloc(k, bytes);
}

static void give(struct twins *t, int rank, uint64_t address)
{
    struct kernels *k = &t->ranks[rank].kernels;

    k->ops->dev_free(k, (struct dev_ptr){address});
}

struct dev_ptr twins_alloc(struct twins *t, size_t bytes)
{
    struct dev_ptr none = {0};
    uint64_t *at = t->blocks[t->n_blocks].at;

    if (t->n == 1)
        return alloc(t, 0, bytes);
    if (t->n_blocks == TWINS_MAX)
        return none;
    for (int r = 0; r < t->n; r++) {
        at[r] = alloc(t, r, bytes).addr;
        if (at[r] == 0) {
            while (r-- > 0)
                give(t, r, at[r]);
            return none;
        }
    }
    t->blocks[t->n_blocks++].bytes = bytes;
    return (struct dev_ptr){at[0]};
}

void twins_free(struct twins *t, struct dev_ptr p)
{
    if (dev_is_null(p))
        return;
    if (t->n == 1)
        give(t, 0, p.addr);
    for (int i = 0; i < t->n_blocks; i++)
        if (t->blocks[i].at[0] == p.addr) {
            for (int r = 0; r < t->n; r++)
                give(t, r, t->blocks[i].at[r]);
            t->blocks[i] = t->blocks[--t->n_blocks];
            return;
        }
}

struct dev_ptr twins_at(const struct twins *t, int rank, struct dev_ptr p)
{
    for (int i = 0; rank > 0 && i < t->n_blocks; i++)
        if (p.addr >= t->blocks[i].at[0] && p.addr < t->blocks[i].at[0] + t->blocks[i].bytes)
            return (struct dev_ptr){t->blocks[i].at[rank] + (p.addr - t->blocks[i].at[0])};
    return p;
}
