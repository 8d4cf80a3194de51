#include "common/text/bpe.h"

#include <stdlib.h>
#include <string.h>

void bpe_scratch_deinit(struct bpe_scratch *s)
{
    free(s->memory);
    *s = (struct bpe_scratch){0};
}

static void *scratch_take(struct bpe_scratch *s, size_t bytes)
{
    if (s->bytes < bytes) {
        free(s->memory);
        s->memory = malloc(bytes);
        s->bytes = s->memory ? bytes : 0;
    }
    return s->memory;
}

unsigned bpe_class(uint8_t byte)
{
    if (byte >= 0x80) /* continuation bytes in four, then the leading ones, Han's in three */
        return byte < 0xC0   ? 8 + (byte >> 4 & 3)
               : byte < 0xE4 ? 12
               : byte < 0xE6 ? 13
               : byte < 0xE8 ? 14
                             : 15;
    if (byte >= 'a' && byte <= 'z')
        return byte < 'f' ? 4 : byte < 'n' ? 5 : byte < 't' ? 6 : 7;
    if (byte >= 'A' && byte <= 'Z')
        return 3;
    if (byte >= '0' && byte <= '9')
        return 2;
    return byte <= ' ' ? 0 : 1;
}

/*
 * Do left and right, side by side, stay two tokens? Think of BPE on their bytes as a film: each
 * token is the last frame of its own side. Run it backwards. At the border stand two tokens; they
 * stood there side by side from the moment the younger was made until one of them was merged into
 * its parent on its own side (limit: that merge's rank, exclusive). If they have a merge of lower
 * rank than that, it came first, and the film is another one. Then undo the younger of the two.
 * Stop when nothing that is still to come at this border is part of a merge with the other side.
 *
 * Equal ranks: the leftmost goes first. A parent of the right-hand token lies to the right of the
 * border, so a crossing merge of the same rank beats it; a parent of the left-hand one wins.
 */
bool bpe_stays_apart(const struct bpe *b, uint32_t left, uint32_t right, uint32_t limit)
{
    const struct bpe_token *l = &b->tokens[left], *r = &b->tokens[right];

    while ((l->leads >> r->first_class & 1) && (r->follows >> l->last_class & 1)) {
        if (bpe_rank(b, left, right) < limit)
            return false;
        if (l->made > r->made) {
            limit = l->made - 1;
            left = l->right;
            l = &b->tokens[left];
        } else if (r->made > 0) {
            limit = r->made;
            right = r->left;
            r = &b->tokens[right];
        } else {
            break; /* two bytes */
        }
    }
    return true;
}

/* Places in a piece that turned out not to begin a token: a bit each, made at the first need. */
struct dead_places {
    uint64_t *bits; /* NULL: none yet */
    uint64_t small[16];
};

static bool is_dead(const struct dead_places *d, size_t pos)
{
    return d->bits != NULL && (d->bits[pos / 64] >> pos % 64 & 1);
}

static bool bury(struct dead_places *d, struct bpe_scratch *scratch, size_t n, size_t pos)
{
    if (d->bits == NULL) {
        size_t bytes = (n / 64 + 1) * sizeof(uint64_t);
        d->bits = bytes <= sizeof(d->small) ? d->small : scratch_take(scratch, bytes);
        if (d->bits == NULL)
            return false;
        memset(d->bits, 0, bytes);
    }
    d->bits[pos / 64] |= (uint64_t)1 << pos % 64;
    return true;
}

/* The next shorter token that fits where id does, and its length. */
static uint32_t shorter(const struct bpe *b, uint32_t id, size_t *len)
{
    id = b->prefixes[id];
    if (id != BPE_NONE)
        *len = b->offsets[id + 1] - b->offsets[id];
    return id;
}

static enum status_code encode_linear(const struct bpe *b, struct bpe_scratch *scratch,
                                      const uint8_t *s, size_t n, uint32_t *ids, size_t *n_ids,
                                      struct status *st)
{
    struct dead_places dead = {.bits = NULL};
    size_t pos = 0, k = 0, len = 0;
    uint32_t id = trie_longest(&b->trie, s, n, &len);

    while (pos < n) {
        while (id != BPE_NONE) {
            if (!is_dead(&dead, pos + len) &&
                (k == 0 || bpe_stays_apart(b, ids[k - 1], id, BPE_NONE)))
                break;
            id = shorter(b, id, &len);
        }
        if (id != BPE_NONE) {
            ids[k++] = id;
            pos += len;
            id = trie_longest(&b->trie, s + pos, n - pos, &len);
            continue;
        }
        /* Nothing fits here, so the token before was too long. */
        if (k == 0)
            return status_set(st, ST_INTERNAL, "no encoding of %zu bytes: broken tables", n);
        if (!bury(&dead, scratch, n, pos))
            return status_set(st, ST_EXHAUSTED, "no memory to encode %zu bytes", n);
        id = ids[--k];
        pos -= b->offsets[id + 1] - b->offsets[id];
        id = shorter(b, id, &len);
    }
    *n_ids = k;
    return status_ok(st);
}

enum status_code bpe_encode(const struct bpe *b, struct bpe_scratch *scratch, const uint8_t *s,
                            size_t n, uint32_t *ids, size_t *n_ids, struct status *st)
{
    if (!b->linear)
        return bpe_encode_by_merging(b, scratch, s, n, ids, n_ids, st);
    return encode_linear(b, scratch, s, n, ids, n_ids, st);
}

/* A possible merge: rank, then place, so that the least comes first in the defined order. */
struct candidate {
    uint32_t rank, pos;
};

struct symbol {
    uint32_t id;         /* BPE_NONE: swallowed by its left neighbour */
    uint32_t prev, next; /* neighbours' places; BPE_NONE at the ends */
};

static bool before(struct candidate a, struct candidate b)
{
    return a.rank < b.rank || (a.rank == b.rank && a.pos < b.pos);
}

static void heap_push(struct candidate *heap, size_t *n, struct candidate c)
{
    size_t i = (*n)++;

    while (i > 0 && before(c, heap[(i - 1) / 2])) {
        heap[i] = heap[(i - 1) / 2];
        i = (i - 1) / 2;
    }
    heap[i] = c;
}

static struct candidate heap_pop(struct candidate *heap, size_t *n)
{
    struct candidate top = heap[0], last = heap[--*n];
    size_t i = 0;

    for (size_t child; (child = 2 * i + 1) < *n; i = child) {
        if (child + 1 < *n && before(heap[child + 1], heap[child]))
            child++;
        if (!before(heap[child], last))
            break;
        heap[i] = heap[child];
    }
    heap[i] = last;
    return top;
}

/* Pushes the merge of the symbol at pos with its right neighbour, when there is one. */
static void consider(const struct bpe *b, const struct symbol *symbols, uint32_t pos,
                     struct candidate *heap, size_t *n_heap)
{
    uint32_t rank;

    if (pos == BPE_NONE || symbols[pos].next == BPE_NONE)
        return;
    rank = bpe_rank(b, symbols[pos].id, symbols[symbols[pos].next].id);
    if (rank != BPE_NONE)
        heap_push(heap, n_heap, (struct candidate){rank, pos});
}

enum status_code bpe_encode_by_merging(const struct bpe *b, struct bpe_scratch *scratch,
                                       const uint8_t *s, size_t n, uint32_t *ids, size_t *n_ids,
                                       struct status *st)
{
    struct symbol *symbols;
    struct candidate *heap;
    size_t n_heap = 0, k = 0;

    if (n >= UINT32_MAX / 4)
        return status_set(st, ST_INVALID, "a piece of %zu bytes is too long", n);
    /* each symbol is considered once at the start and at most twice for each merge */
    symbols = scratch_take(scratch, n * (sizeof(*symbols) + 3 * sizeof(*heap)));
    if (symbols == NULL)
        return status_set(st, ST_EXHAUSTED, "no memory to encode %zu bytes", n);
    heap = (struct candidate *)(symbols + n);
    for (uint32_t i = 0; i < n; i++)
        symbols[i] = (struct symbol){b->byte_ids[s[i]], i - 1, i + 1 < n ? i + 1 : BPE_NONE};
    for (uint32_t i = 0; i < n; i++)
        consider(b, symbols, i, heap, &n_heap);
    while (n_heap > 0) {
        struct candidate c = heap_pop(heap, &n_heap);
        struct symbol *l = &symbols[c.pos], *r;
        if (l->id == BPE_NONE || l->next == BPE_NONE)
            continue;
        r = &symbols[l->next];
        if (bpe_rank(b, l->id, r->id) != c.rank)
            continue; /* one of the two has been merged since */
        l->id = b->merged[c.rank];
        l->next = r->next;
        r->id = BPE_NONE;
        if (l->next != BPE_NONE)
            symbols[l->next].prev = c.pos;
        consider(b, symbols, c.pos, heap, &n_heap);
        consider(b, symbols, l->prev, heap, &n_heap);
    }
    for (uint32_t i = 0; i != BPE_NONE; i = symbols[i].next)
        ids[k++] = symbols[i].id;
    *n_ids = k;
    return status_ok(st);
}
