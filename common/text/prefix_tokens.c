#include "common/text/prefix_tokens.h"

#include "common/base/hash.h"
#include "common/text/tokenizer_impl.h"
#include "common/text/text_budget.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

enum {
    DEFAULT_CAP_BYTES = TEXT_BUDGET_PREFIXES,
    PROMPT_MIN_BYTES = 8192, /* shorter prompts are tokenized in less than 50 us */
    SPAN_MIN_IDS = 1024,     /* a beginning ends at least this far behind the one it continues */
    N_KEYS = 8,
};

/* The hash of a prompt's beginning. */
struct digest {
    uint64_t a, b;
};

/* A beginning: what its parent says, then ids. The mutex guards all but ids, n_total and parent,
 * which are constant while anybody refers to the node. */
struct node {
    struct digest digest;
    struct node *parent;        /* NULL: the empty beginning; referred to by this node */
    struct node *bucket_next;   /* in its bucket */
    struct node *older, *newer; /* among the idle ones; used while refs == 0 */
    uint32_t refs;              /* children, and calls that copy from it */
    size_t n_total;             /* ids from the start of the prompt */
    size_t n;                   /* ids here */
    int32_t ids[];
};

struct prefix_tokens {
    const struct tokenizer *t;
    uint64_t keys[N_KEYS];
    size_t cap_bytes;
    pthread_mutex_t mutex; /* guards everything below, held alone and never for long */
    size_t bytes;
    struct node **buckets;
    size_t n_buckets;             /* a power of two */
    struct node *oldest, *newest; /* idle nodes (refs == 0), by their last use */
};

enum status_code prefix_tokens_new(const struct tokenizer *t, size_t cap_bytes,
                                   struct prefix_tokens **out, struct status *st)
{
    struct prefix_tokens *c = calloc(1, sizeof(*c));
    size_t cap = cap_bytes ? cap_bytes : DEFAULT_CAP_BYTES;

    if (c != NULL) {
        c->n_buckets = 64;
        while (c->n_buckets < cap / 1024)
            c->n_buckets *= 2;
        c->buckets = calloc(c->n_buckets, sizeof(*c->buckets));
    }
    if (c == NULL || c->buckets == NULL) {
        free(c);
        return status_set(st, ST_EXHAUSTED, "no memory for a cache of prompts' beginnings");
    }
    c->t = t;
    c->cap_bytes = cap;
    c->bytes = sizeof(*c) + c->n_buckets * sizeof(*c->buckets);
    for (int i = 0; i < N_KEYS; i++)
        c->keys[i] = hash_seed();
    pthread_mutex_init(&c->mutex, NULL);
    *out = c;
    return status_ok(st);
}

void prefix_tokens_free(struct prefix_tokens *c)
{
    if (c == NULL)
        return;
    for (size_t i = 0; i < c->n_buckets; i++)
        for (struct node *n = c->buckets[i], *next; n != NULL; n = next) {
            next = n->bucket_next;
            free(n);
        }
    pthread_mutex_destroy(&c->mutex);
    free(c->buckets);
    free(c);
}

size_t prefix_tokens_memory(struct prefix_tokens *c)
{
    size_t bytes;

    pthread_mutex_lock(&c->mutex);
    bytes = c->bytes;
    pthread_mutex_unlock(&c->mutex);
    return bytes;
}

static uint64_t fold(uint64_t x, uint64_t y)
{
    unsigned __int128 m = (unsigned __int128)x * y;

    return (uint64_t)m ^ (uint64_t)(m >> 64);
}

static void absorb_block(uint64_t lanes[4], const uint8_t *s, const uint64_t *keys)
{
    uint64_t w[8];

    memcpy(w, s, sizeof(w));
    for (int i = 0; i < 4; i++)
        lanes[i] = fold(w[2 * i] ^ keys[i], w[2 * i + 1] ^ lanes[i]);
}

/* The digest of what d stands for, then s[n] and a number. Four lanes of multiplications keep up
 * with memory; each of them reaches both halves of the result. */
static struct digest absorb(struct digest d, const uint8_t *s, size_t n, uint64_t number,
                            const uint64_t *keys)
{
    uint64_t lanes[4] = {d.a ^ keys[4], d.b ^ keys[5], d.a ^ keys[6], d.b ^ keys[7]};
    uint8_t tail[64] = {0};
    size_t left = n;

    for (; left >= 64; s += 64, left -= 64)
        absorb_block(lanes, s, keys);
    memcpy(tail, s, left);
    absorb_block(lanes, tail, keys);
    return (struct digest){
        fold(lanes[0] ^ n, lanes[1] ^ keys[4]) ^ fold(lanes[2] ^ number, lanes[3] ^ keys[5]),
        fold(lanes[0] ^ keys[6], lanes[3] ^ number) ^ fold(lanes[1] ^ keys[7], lanes[2] ^ n)};
}

/* The digests behind each special of p; false when they are out of order: whoever encodes it will
 * say so. */
static bool digest_prompt(const struct prefix_tokens *c, const struct prompt *p,
                          struct digest *digests)
{
    const uint8_t *s = (const uint8_t *)p->text.data;
    struct digest d = {0, 0};
    size_t done = 0;

    for (size_t i = 0; i < p->n_specials; i++) {
        const struct prompt_special *sp = &p->specials[i];
        size_t end = sp->offset + sp->len;
        if (sp->offset < done || sp->offset > p->text.len || sp->len > p->text.len - sp->offset)
            return false;
        d = absorb(d, s + done, end - done, (uint64_t)sp->len << 32 | (uint32_t)sp->id, c->keys);
        digests[i] = d;
        done = end;
    }
    return true;
}

static struct node **bucket(const struct prefix_tokens *c, struct digest d)
{
    return &c->buckets[d.a & (c->n_buckets - 1)];
}

static struct node *find(const struct prefix_tokens *c, struct digest d)
{
    struct node *n = *bucket(c, d);

    while (n != NULL && (n->digest.a != d.a || n->digest.b != d.b))
        n = n->bucket_next;
    return n;
}

static size_t node_bytes(const struct node *n)
{
    return sizeof(*n) + n->n * sizeof(*n->ids);
}

static void idle_remove(struct prefix_tokens *c, struct node *n)
{
    *(n->older != NULL ? &n->older->newer : &c->oldest) = n->newer;
    *(n->newer != NULL ? &n->newer->older : &c->newest) = n->older;
    n->older = n->newer = NULL;
}

static void node_ref(struct prefix_tokens *c, struct node *n)
{
    if (n != NULL && n->refs++ == 0)
        idle_remove(c, n);
}

static void node_unref(struct prefix_tokens *c, struct node *n)
{
    if (n == NULL || --n->refs > 0)
        return;
    n->older = c->newest;
    *(c->newest != NULL ? &c->newest->newer : &c->oldest) = n;
    c->newest = n;
}

/* The same for the parent of a node that went: nobody asked for it after its child was. */
static void node_unref_by_child(struct prefix_tokens *c, struct node *n)
{
    if (n == NULL || --n->refs > 0)
        return;
    n->newer = c->oldest;
    *(c->oldest != NULL ? &c->oldest->older : &c->newest) = n;
    c->oldest = n;
}

/* Frees idle nodes, the oldest first, until n more bytes fit; false when they never will. */
static bool make_room(struct prefix_tokens *c, size_t n)
{
    while (c->bytes > c->cap_bytes || c->cap_bytes - c->bytes < n) {
        struct node *old = c->oldest, **link;
        if (old == NULL)
            return false;
        idle_remove(c, old);
        for (link = bucket(c, old->digest); *link != old; link = &(*link)->bucket_next)
            ;
        *link = old->bucket_next;
        c->bytes -= node_bytes(old);
        node_unref_by_child(c, old->parent);
        free(old);
    }
    return true;
}

/* Makes the tree know a beginning; returns its node, with a reference for the caller that replaces
 * the caller's reference to parent. NULL when there is no room for it. */
static struct node *insert(struct prefix_tokens *c, struct digest d, struct node *parent,
                           const int32_t *ids, size_t n_ids)
{
    struct node *n = malloc(sizeof(*n) + n_ids * sizeof(*ids)), *twin;
    bool kept = false;

    if (n != NULL) {
        *n = (struct node){.digest = d,
                           .parent = parent,
                           .refs = 1,
                           .n_total = (parent != NULL ? parent->n_total : 0) + n_ids,
                           .n = n_ids};
        memcpy(n->ids, ids, n_ids * sizeof(*ids));
    }
    pthread_mutex_lock(&c->mutex);
    twin = find(c, d);
    if (twin != NULL) { /* another thread was quicker */
        node_ref(c, twin);
        node_unref(c, parent);
    } else if (n != NULL && make_room(c, node_bytes(n))) {
        struct node **link = bucket(c, d);
        n->bucket_next = *link; /* the caller's reference to the parent is the node's now */
        *link = n;
        c->bytes += node_bytes(n);
        kept = true;
    } else {
        node_unref(c, parent);
    }
    pthread_mutex_unlock(&c->mutex);
    if (!kept)
        free(n);
    return kept ? n : twin;
}

/* The longest known beginning of the prompt, referred to; n_specials: how many specials it has. */
static struct node *look_up(struct prefix_tokens *c, const struct digest *digests,
                            size_t *n_specials)
{
    struct node *n = NULL;
    size_t i = *n_specials;

    pthread_mutex_lock(&c->mutex);
    while (i > 0 && (n = find(c, digests[i - 1])) == NULL)
        i--;
    node_ref(c, n);
    pthread_mutex_unlock(&c->mutex);
    *n_specials = i;
    return n;
}

/* Appends the ids of a beginning; its last ones stand in the node, those before in its parents. */
static bool copy_ids(const struct node *n, struct token_list *out)
{
    size_t at;

    if (n == NULL)
        return true;
    if (!token_list_reserve(out, n->n_total))
        return false;
    at = out->n += n->n_total;
    for (; n != NULL; n = n->parent) {
        at -= n->n;
        memcpy(out->ids + at, n->ids, n->n * sizeof(*n->ids));
    }
    return true;
}

/* Remembers what was tokenized now: behind the known beginning, at specials that are far enough
 * apart, and at the last one. start: where the prompt's ids begin in out. */
static void remember(struct prefix_tokens *c, struct node *known, size_t n_known,
                     const struct prompt *p, const struct digest *digests, const size_t *marks,
                     const struct token_list *out, size_t start)
{
    size_t done = start + (known != NULL ? known->n_total : 0);
    struct node *n = known;

    for (size_t i = n_known; i < p->n_specials; i++) {
        if (marks[i] - done < SPAN_MIN_IDS && i + 1 < p->n_specials)
            continue;
        n = insert(c, digests[i], n, out->ids + done, marks[i] - done);
        if (n == NULL)
            return;
        done = marks[i];
    }
    pthread_mutex_lock(&c->mutex);
    node_unref(c, n);
    pthread_mutex_unlock(&c->mutex);
}

static enum status_code encode(struct prefix_tokens *c, struct tokenizer_cache *words,
                               const struct prompt *p, struct token_list *out, size_t *n_reused,
                               struct digest *digests, size_t *marks, struct status *st)
{
    size_t n_known = p->n_specials, start = out->n;
    struct node *known;

    if (!digest_prompt(c, p, digests))
        return tokenizer_encode_prompt(c->t, words, p, out, st);
    known = look_up(c, digests, &n_known);
    if (!copy_ids(known, out))
        status_set(st, ST_EXHAUSTED, "no memory for the ids of a prompt");
    else if (tokenizer_encode_prompt_from(c->t, words, p, n_known, marks, out, st) == ST_OK) {
        *n_reused = known != NULL ? known->n_total : 0;
        remember(c, known, n_known, p, digests, marks, out, start);
        return st->code;
    }
    out->n = start;
    pthread_mutex_lock(&c->mutex);
    node_unref(c, known);
    pthread_mutex_unlock(&c->mutex);
    return st->code;
}

enum status_code prefix_tokens_encode(struct prefix_tokens *c, struct tokenizer_cache *words,
                                      const struct prompt *p, struct token_list *out,
                                      size_t *n_reused, struct status *st)
{
    struct digest *digests;
    size_t *marks, none;

    if (n_reused == NULL)
        n_reused = &none;
    *n_reused = 0;
    if (p->text.len < PROMPT_MIN_BYTES || p->n_specials == 0)
        return tokenizer_encode_prompt(c->t, words, p, out, st);
    digests = malloc(p->n_specials * sizeof(*digests));
    marks = malloc(p->n_specials * sizeof(*marks));
    if (digests == NULL || marks == NULL)
        status_set(st, ST_EXHAUSTED, "no memory for %zu special tokens", p->n_specials);
    else
        encode(c, words, p, out, n_reused, digests, marks, st);
    free(digests);
    free(marks);
    return st->code;
}
