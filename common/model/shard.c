#include "common/model/shard.h"

enum { TILE = 128 }; /* rows of one FP8 scale */

/* A share is whole tiles, or lies inside one. */
static bool cuts(int64_t rows, int n)
{
    int64_t share = rows / n;

    return rows % n == 0 && (share % TILE == 0 || (share > 0 && TILE % share == 0));
}

struct shard shard_make(const struct model_config *c, int rank, int n)
{
    struct shard s = {.rank = rank, .n_ranks = n};

    s.first_expert = (int)((int64_t)c->n_experts * rank / n);
    s.n_experts = (int)((int64_t)c->n_experts * (rank + 1) / n) - s.first_expert;
    if (n == 1)
        return s;
    s.heads = c->n_heads % n == 0 && c->o_groups % n == 0 &&
              cuts((int64_t)c->n_heads * c->head_dim, n) &&
              cuts((int64_t)c->o_groups * c->o_lora_rank, n);
    s.out = cuts(c->hidden_size, n);
    s.index = c->index_n_heads % n == 0 && cuts((int64_t)c->index_n_heads * c->index_head_dim, n);
    s.vocab = c->vocab_size % n == 0;
    return s;
}

bool shard_has_shared(const struct shard *s, int layer)
{
    return layer % s->n_ranks == s->rank;
}
