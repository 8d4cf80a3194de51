#include "common/text/tokenizer_impl.h"

#include "common/base/utf8.h"
#include "common/text/pretokenize.h"
#include "common/text/unicode.h"
#include "common/text/word_cache.h"
#include "common/text/text_budget.h"

#include <stdio.h>
#include <stdlib.h>

enum { DEFAULT_CACHE_BYTES = TEXT_BUDGET_WORDS_ONE };

struct tokenizer_cache {
    const struct tokenizer *owner; /* whose ids these are; another tokenizer starts it anew */
    struct word_cache words;
    struct bpe_scratch scratch;
};

/* One call of tokenizer_encode(): what all its steps need. */
struct encoding {
    const struct tokenizer *t;
    struct word_cache *words; /* NULL: none */
    struct bpe_scratch *scratch;
    struct token_list *out;
    struct status *st;
};

bool token_list_reserve(struct token_list *l, size_t n)
{
    size_t cap = l->cap ? l->cap : 64;
    int32_t *grown;

    if (l->cap - l->n >= n)
        return true;
    if (n > SIZE_MAX / sizeof(*grown) / 4 - l->n)
        return false;
    while (cap - l->n < n)
        cap *= 2;
    grown = realloc(l->ids, cap * sizeof(*grown));
    if (grown == NULL)
        return false;
    l->ids = grown;
    l->cap = cap;
    return true;
}

void token_list_push(struct token_list *l, int32_t id)
{
    if (l->n == l->cap && !token_list_reserve(l, 1)) {
        fprintf(stderr, "fatal: no memory for %zu token ids\n", l->n + 1);
        abort();
    }
    l->ids[l->n++] = id;
}

void token_list_deinit(struct token_list *l)
{
    free(l->ids);
    *l = (struct token_list){0};
}

enum status_code tokenizer_cache_new(size_t cap_bytes, struct tokenizer_cache **out,
                                     struct status *st)
{
    struct tokenizer_cache *c = calloc(1, sizeof(*c));

    if (c == NULL)
        return status_set(st, ST_EXHAUSTED, "no memory for a tokenizer cache");
    if (word_cache_init(&c->words, cap_bytes ? cap_bytes : DEFAULT_CACHE_BYTES, st) != ST_OK) {
        free(c);
        return st->code;
    }
    *out = c;
    return status_ok(st);
}

void tokenizer_cache_free(struct tokenizer_cache *c)
{
    if (c == NULL)
        return;
    word_cache_deinit(&c->words);
    bpe_scratch_deinit(&c->scratch);
    free(c);
}

size_t tokenizer_cache_memory(const struct tokenizer_cache *c)
{
    return sizeof(*c) + word_cache_bytes(&c->words) + c->scratch.bytes;
}

/* Appends the ids of one piece; w is prepared when there is a word cache. */
static bool encode_piece(struct encoding *e, const struct word *w)
{
    uint32_t *ids;
    size_t k;

    if (!token_list_reserve(e->out, w->n > WORD_IDS_MAX ? w->n : WORD_IDS_MAX)) {
        status_set(e->st, ST_EXHAUSTED, "no memory for %zu token ids", e->out->n + w->n);
        return false;
    }
    ids = (uint32_t *)e->out->ids + e->out->n;
    k = e->words != NULL ? word_cache_find(w, ids) : 0;
    if (k == 0) {
        if (bpe_encode(&e->t->bpe, e->scratch, w->s, w->n, ids, &k, e->st) != ST_OK)
            return false;
        if (e->words != NULL)
            word_cache_put(w, ids, k);
    }
    e->out->n += k;
    return true;
}

/* A stretch without added tokens: a few pieces are cut, then those are encoded. */
static bool encode_stretch(struct encoding *e, const uint8_t *s, size_t n)
{
    enum { AHEAD = 16 };
    struct word words[AHEAD];

    for (size_t pos = 0; pos < n;) {
        unsigned n_words = 0;
        for (size_t end; n_words < AHEAD && pos < n; n_words++, pos = end) {
            end = pretokenize_next(s, n, pos);
            if (e->words != NULL)
                word_cache_prepare(e->words, s + pos, end - pos, n - pos, &words[n_words]);
            else
                words[n_words] = (struct word){.s = s + pos, .n = end - pos};
        }
        for (unsigned i = 0; i < n_words; i++)
            if (!encode_piece(e, &words[i]))
                return false;
    }
    return true;
}

/* Where from pos on a byte stands that an added token of this pass may begin with; n: nowhere. */
static size_t next_start(const struct added_pass *p, const uint8_t *s, size_t n, size_t pos)
{
#ifdef __SSE2__
    const __m128i first = _mm_set1_epi8((char)p->first[0]), last = _mm_set1_epi8((char)p->first[1]);

    for (; p->n_starts <= 2 && n - pos >= 16; pos += 16) {
        __m128i v = _mm_loadu_si128((const void *)(s + pos));
        int hit =
            _mm_movemask_epi8(_mm_or_si128(_mm_cmpeq_epi8(v, first), _mm_cmpeq_epi8(v, last)));
        if (hit != 0)
            return pos + (size_t)__builtin_ctz((unsigned)hit);
    }
#endif
    while (pos < n && !p->starts[s[pos]])
        pos++;
    return pos;
}

/* Cuts out the added tokens of pass `which`, and what is left by the passes after it. */
static bool encode_pass(struct encoding *e, int which, const uint8_t *s, size_t n)
{
    const struct added_pass *p = &e->t->passes[which];
    size_t done = 0, pos = 0;

    if (which == 2)
        return encode_stretch(e, s, n);
    if (p->n_starts == 0)
        return encode_pass(e, which + 1, s, n);
    while ((pos = next_start(p, s, n, pos)) < n) {
        size_t len = 0;
        uint32_t id = trie_longest(&p->trie, s + pos, n - pos, &len);
        if (id == TRIE_NONE) {
            pos++;
            continue;
        }
        if (pos > done && !encode_pass(e, which + 1, s + done, pos - done))
            return false;
        token_list_push(e->out, (int32_t)id);
        pos += len;
        done = pos;
    }
    return done == n || encode_pass(e, which + 1, s + done, n - done);
}

/* s[from .. to - 1] of a text. */
static bool check_utf8(const uint8_t *s, size_t from, size_t to, struct status *st)
{
    size_t valid = from + utf8_valid_prefix((const char *)s + from, to - from);

    if (valid < to)
        status_set(st, ST_INVALID, "the text is not valid UTF-8: byte 0x%02X at offset %zu",
                   s[valid], valid);
    return valid == to;
}

static struct encoding begin(const struct tokenizer *t, struct tokenizer_cache *cache,
                             struct bpe_scratch *scratch, struct token_list *out, struct status *st)
{
    status_ok(st);
    if (cache == NULL)
        return (struct encoding){.t = t, .scratch = scratch, .out = out, .st = st};
    if (cache->owner != t) {
        word_cache_clear(&cache->words);
        cache->owner = t;
    }
    return (struct encoding){
        .t = t, .words = &cache->words, .scratch = &cache->scratch, .out = out, .st = st};
}

enum status_code tokenizer_encode(const struct tokenizer *t, struct tokenizer_cache *cache,
                                  const char *text, size_t len, unsigned flags,
                                  struct token_list *out, struct status *st)
{
    struct bpe_scratch scratch = {0};
    struct encoding e = begin(t, cache, &scratch, out, st);
    size_t n = out->n;

    if (!check_utf8((const uint8_t *)text, 0, len, st))
        return st->code;
    if (!encode_pass(&e, flags & TOKENIZE_ADDED ? 0 : 2, (const uint8_t *)text, len))
        out->n = n;
    bpe_scratch_deinit(&scratch);
    return st->code;
}

static enum status_code special_id(const struct tokenizer *t, const struct prompt *p, size_t i,
                                   int32_t *id, struct status *st)
{
    const struct prompt_special *s = &p->specials[i];

    *id = s->id;
    if (s->id == -1)
        *id = tokenizer_added_id(t, p->text.data + s->offset, s->len);
    if (s->id == -1 && *id == -1)
        return status_set(st, ST_INVALID, "special %zu, \"%.*s\", is no added token", i,
                          (int)(s->len < 100 ? s->len : 100), p->text.data + s->offset);
    if (*id < 0 || *id >= tokenizer_vocab(t))
        return status_set(st, ST_INVALID, "special %zu has the id %d, the vocabulary %d", i, *id,
                          tokenizer_vocab(t));
    return ST_OK;
}

static bool encode_text(struct encoding *e, const uint8_t *s, size_t from, size_t to)
{
    return check_utf8(s, from, to, e->st) && encode_stretch(e, s + from, to - from);
}

/* A prompt from behind its first `first` specials on. */
static bool encode_prompt(struct encoding *e, const struct prompt *p, size_t first, size_t *marks)
{
    const uint8_t *s = (const uint8_t *)p->text.data;
    size_t done = first > 0 ? p->specials[first - 1].offset + p->specials[first - 1].len : 0;
    int32_t id;

    for (size_t i = first; i < p->n_specials; i++) {
        const struct prompt_special *sp = &p->specials[i];
        if (sp->offset < done || sp->offset > p->text.len || sp->len > p->text.len - sp->offset) {
            status_set(e->st, ST_INVALID, "special %zu at byte %zu overlaps another or the end", i,
                       sp->offset);
            return false;
        }
        if (special_id(e->t, p, i, &id, e->st) != ST_OK || !encode_text(e, s, done, sp->offset))
            return false;
        token_list_push(e->out, id);
        done = sp->offset + sp->len;
        if (marks != NULL)
            marks[i] = e->out->n;
    }
    return encode_text(e, s, done, p->text.len);
}

enum status_code tokenizer_encode_prompt_from(const struct tokenizer *t,
                                              struct tokenizer_cache *cache, const struct prompt *p,
                                              size_t first, size_t *marks, struct token_list *out,
                                              struct status *st)
{
    struct bpe_scratch scratch = {0};
    struct encoding e = begin(t, cache, &scratch, out, st);
    size_t n = out->n;

    if (!encode_prompt(&e, p, first, marks))
        out->n = n;
    bpe_scratch_deinit(&scratch);
    return st->code;
}

enum status_code tokenizer_encode_prompt(const struct tokenizer *t, struct tokenizer_cache *cache,
                                         const struct prompt *p, struct token_list *out,
                                         struct status *st)
{
    return tokenizer_encode_prompt_from(t, cache, p, 0, NULL, out, st);
}
