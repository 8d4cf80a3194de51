#include "common/text/bpe_build.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

void bpe_tables_deinit(struct bpe_tables *t)
{
    free(t->tokens);
    free(t->prefixes);
    free(t->merged);
    free(t->pairs);
    free(t->filter);
    free(t->trie);
    *t = (struct bpe_tables){0};
}

/* The tables are larger than the nearer caches and are walked in random order: what a later turn
 * needs is fetched this many turns before. */
enum { AHEAD = 8 };

static void prefetch_pair(const struct bpe *b, const struct bpe_merge *m)
{
    uint64_t hash = bpe_hash(m->left, m->right);

    __builtin_prefetch(&b->pairs[hash >> b->pairs_shift]);
    __builtin_prefetch(&b->filter[hash >> b->filter_shift]);
}

static unsigned pair_bits(uint32_t n_merges)
{
    unsigned bits = 8;

    while (((uint64_t)1 << bits) < 2 * (uint64_t)n_merges)
        bits++;
    return bits;
}

static enum status_code build_pairs(const struct bpe_merge *merges, uint32_t n, struct bpe *b,
                                    struct bpe_tables *out, struct status *st)
{
    unsigned bits = pair_bits(n);

    out->n_pairs = (size_t)1 << bits;
    out->n_filter = out->n_pairs / 8;
    out->pairs = malloc(out->n_pairs * sizeof(*out->pairs));
    out->filter = calloc(out->n_filter, sizeof(*out->filter));
    if (out->pairs == NULL || out->filter == NULL)
        return status_set(st, ST_EXHAUSTED, "no memory for %u merges", n);
    memset(out->pairs, 0xFF, out->n_pairs * sizeof(*out->pairs));
    b->pairs = out->pairs;
    b->pairs_mask = out->n_pairs - 1;
    b->pairs_shift = 64 - bits;
    b->filter = out->filter;
    b->filter_shift = 64 - (bits - 3);
    for (uint32_t rank = 0; rank < n; rank++) {
        uint64_t key = (uint64_t)merges[rank].left << 20 | merges[rank].right;
        uint64_t hash = bpe_hash(merges[rank].left, merges[rank].right);
        uint64_t i = hash >> b->pairs_shift;
        if (rank + AHEAD < n)
            prefetch_pair(b, &merges[rank + AHEAD]);
        while (out->pairs[i] != BPE_PAIR_FREE && out->pairs[i] >> 24 != key)
            i = (i + 1) & b->pairs_mask;
        if (out->pairs[i] != BPE_PAIR_FREE)
            return status_set(st, ST_INVALID, "merge %u repeats merge %u", rank,
                              (unsigned)(out->pairs[i] & 0xFFFFFF));
        out->pairs[i] = key << 24 | rank;
        out->filter[hash >> b->filter_shift] |= bpe_filter_bits(hash);
    }
    return status_ok(st);
}

/* True when every merge's parts are bytes or made before it, and no two make the same token: then
 * the rank says when a token came to be, which bpe_stays_apart() relies on. */
static bool note_makers(const struct bpe *b, const struct bpe_merge *merges, uint32_t n_merges,
                        struct bpe_token *tokens)
{
    for (uint32_t i = 0; i < b->n_tokens; i++)
        tokens[i] = (struct bpe_token){.left = BPE_NONE,
                                       .right = BPE_NONE,
                                       .first_class = bpe_class(b->bytes[b->offsets[i]]),
                                       .last_class = bpe_class(b->bytes[b->offsets[i + 1] - 1])};
    for (uint32_t rank = 0; rank < n_merges; rank++) {
        const struct bpe_merge *m = &merges[rank];
        struct bpe_token *whole = &tokens[m->whole];
        uint32_t left_len = b->offsets[m->left + 1] - b->offsets[m->left];
        uint32_t right_len = b->offsets[m->right + 1] - b->offsets[m->right];
        if ((tokens[m->left].made == 0 && left_len > 1) ||
            (tokens[m->right].made == 0 && right_len > 1) || whole->made > 0)
            return false;
        whole->left = m->left;
        whole->right = m->right;
        whole->made = (rank + 1) & 0xFFFFFF;
    }
    return true;
}

/* A token's masks hold those of the tokens at its ends, which were made before it. */
static void note_neighbours(const struct bpe_merge *merges, uint32_t n_merges,
                            struct bpe_token *tokens)
{
    for (uint32_t rank = 0; rank < n_merges; rank++) {
        struct bpe_token *l = &tokens[merges[rank].left], *r = &tokens[merges[rank].right];
        l->leads |= (uint16_t)(1u << r->first_class);
        r->follows |= (uint16_t)(1u << l->last_class);
    }
    for (uint32_t rank = 0; rank < n_merges; rank++) {
        struct bpe_token *whole = &tokens[merges[rank].whole];
        whole->leads |= tokens[whole->right].leads;
        whole->follows |= tokens[whole->left].follows;
    }
}

/*
 * The trie of the tokens that encode to themselves. In a trained vocabulary that is all of them; so
 * a thread builds the trie of all beside the other tables, and only if some do not, it is built
 * again without them.
 */
struct trie_job {
    pthread_t thread;
    bool started;
    struct trie_key *keys;
    size_t n;
    uint32_t *prefixes, *slots;
    size_t n_slots;
    struct status st;
};

static void *run_trie_job(void *arg)
{
    struct trie_job *job = arg;

    trie_build(job->keys, job->n, job->prefixes, &job->slots, &job->n_slots, &job->st);
    return NULL;
}

static enum status_code start_trie(struct trie_job *job, const struct bpe *b,
                                   const struct bpe_merge *merges, uint32_t n_merges,
                                   uint32_t *prefixes, struct status *st)
{
    job->keys = malloc(((size_t)n_merges + 256) * sizeof(*job->keys));
    if (job->keys == NULL)
        return status_set(st, ST_EXHAUSTED, "no memory for %u merges", n_merges);
    for (uint32_t i = 0; i < n_merges + 256; i++) {
        uint32_t id = i < 256 ? b->byte_ids[i] : merges[i - 256].whole;
        job->keys[job->n++] =
            (struct trie_key){b->bytes + b->offsets[id], b->offsets[id + 1] - b->offsets[id], id};
    }
    job->prefixes = prefixes;
    job->started = pthread_create(&job->thread, NULL, run_trie_job, job) == 0;
    if (!job->started)
        run_trie_job(job);
    return status_ok(st);
}

static void join_trie(struct trie_job *job)
{
    if (job->started)
        pthread_join(job->thread, NULL);
    job->started = false;
}

/* Drops from keys the tokens that do not encode to themselves: those whose parts do not, or which
 * something crosses before they are merged. Returns how many are left. */
static size_t keep_whole(const struct bpe *b, const struct bpe_merge *merges, uint32_t n_merges,
                         uint8_t *whole, struct trie_key *keys)
{
    size_t n = 256;

    for (uint32_t c = 0; c < 256; c++)
        whole[b->byte_ids[c]] = 1;
    for (uint32_t rank = 0; rank < n_merges; rank++) {
        const struct bpe_merge *m = &merges[rank], *later = m + AHEAD;
        if (rank + AHEAD < n_merges) {
            __builtin_prefetch(&b->tokens[later->left]);
            __builtin_prefetch(&b->tokens[later->right]);
            prefetch_pair(b, later);
        }
        if (whole[m->left] && whole[m->right] && bpe_stays_apart(b, m->left, m->right, rank)) {
            whole[m->whole] = 1;
            keys[n++] = keys[rank + 256];
        }
    }
    return n;
}

static enum status_code finish_trie(struct trie_job *job, const struct bpe *b,
                                    const struct bpe_merge *merges, uint32_t n_merges,
                                    struct bpe_tables *out, struct status *st)
{
    uint8_t *whole = calloc(b->n_tokens, 1);
    struct trie_key *kept = malloc(job->n * sizeof(*kept));
    size_t n;

    if (whole == NULL || kept == NULL) {
        free(whole);
        free(kept);
        return status_set(st, ST_EXHAUSTED, "no memory for %u tokens", b->n_tokens);
    }
    memcpy(kept, job->keys, job->n * sizeof(*kept)); /* the thread reads the others */
    n = keep_whole(b, merges, n_merges, whole, kept);
    join_trie(job);
    if (n < job->n) {
        memcpy(job->keys, kept, n * sizeof(*kept));
        job->n = n;
        free(job->slots);
        job->slots = NULL;
        run_trie_job(job);
    }
    *st = job->st;
    out->trie = job->slots;
    out->n_trie = job->n_slots;
    job->slots = NULL;
    free(whole);
    free(kept);
    return st->code;
}

static enum status_code build_tables(const struct bpe *vocab, const struct bpe_merge *merges,
                                     uint32_t n_merges, struct trie_job *job, struct bpe_tables *t,
                                     struct status *st)
{
    struct bpe b = *vocab;

    t->tokens = malloc(b.n_tokens * sizeof(*t->tokens));
    t->prefixes = malloc(b.n_tokens * sizeof(*t->prefixes));
    t->merged = malloc(((size_t)n_merges + 1) * sizeof(*t->merged));
    if (t->tokens == NULL || t->prefixes == NULL || t->merged == NULL)
        return status_set(st, ST_EXHAUSTED, "no memory for %u tokens", b.n_tokens);
    for (uint32_t i = 0; i < b.n_tokens; i++)
        t->prefixes[i] = BPE_NONE;
    if (start_trie(job, &b, merges, n_merges, t->prefixes, st) != ST_OK ||
        build_pairs(merges, n_merges, &b, t, st) != ST_OK)
        return st->code;
    for (uint32_t rank = 0; rank < n_merges; rank++)
        t->merged[rank] = merges[rank].whole;
    t->linear = note_makers(&b, merges, n_merges, t->tokens);
    if (!t->linear)
        return st->code;
    note_neighbours(merges, n_merges, t->tokens);
    b.tokens = t->tokens;
    return finish_trie(job, &b, merges, n_merges, t, st);
}

enum status_code bpe_build(const struct bpe *vocab, const struct bpe_merge *merges,
                           uint32_t n_merges, struct bpe_tables *out, struct status *st)
{
    struct trie_job job = {.started = false};
    struct bpe_tables t = {0};

    build_tables(vocab, merges, n_merges, &job, &t, st);
    join_trie(&job);
    free(job.keys);
    free(job.slots);
    if (st->code == ST_OK)
        *out = t;
    else
        bpe_tables_deinit(&t);
    return st->code;
}
