#include "router/token_logprobs.h"

#include <math.h>
#include <string.h>

#include "common/base/json.h"
#include "common/base/utf8.h"

struct entry {
    int32_t id;
    float logprob; /* NaN: there is none */
};

struct token {
    struct entry entry;
    uint32_t n_top;
};

/* One token with its most probable ones, while writing. */
struct shown {
    struct token token;
    const struct entry *top;
};

/* ---- gathering ---- */

enum status_code token_logprobs_check(const Baton__V1__Logprobs *m, size_t n_tokens,
                                      const struct tokenizer *t, struct status *st)
{
    uint64_t n_top = 0;

    if (m == NULL)
        return status_set(st, ST_CORRUPT, "the decode worker told no log probabilities");
    for (size_t i = 0; i < m->n_n_top; i++)
        n_top += m->n_top[i];
    if (m->n_logprobs != n_tokens || m->n_n_top != n_tokens || m->n_top_ids != n_top ||
        m->n_top_logprobs != n_top)
        return status_set(st, ST_CORRUPT,
                          "the decode worker told log probabilities that do not fit %zu tokens",
                          n_tokens);
    for (size_t i = 0; i < m->n_top_ids; i++)
        if (m->top_ids[i] < 0 || m->top_ids[i] >= tokenizer_vocab(t))
            return status_set(st, ST_CORRUPT,
                              "the decode worker sent token %d, the vocabulary has %d",
                              m->top_ids[i], tokenizer_vocab(t));
    return status_ok(st);
}

void token_logprobs_add(struct token_logprobs *l, int32_t id, const Baton__V1__Logprobs *m,
                        size_t i, size_t *top_at)
{
    struct token token = {{id, m->logprobs[i]}, m->n_top[i]};

    if (isnan(token.entry.logprob))
        token.entry.logprob = -INFINITY;
    buf_append(&l->tokens, &token, sizeof(token));
    for (uint32_t k = 0; k < token.n_top; k++, ++*top_at) {
        struct entry e = {m->top_ids[*top_at], m->top_logprobs[*top_at]};

        buf_append(&l->top, &e, sizeof(e));
    }
    l->n++;
}

void token_logprobs_add_first(struct token_logprobs *l, int32_t id)
{
    struct token token = {{id, NAN}, 0};

    buf_append(&l->tokens, &token, sizeof(token));
    l->n++;
}

/* ---- writing ---- */

static const char *bytes_of(const struct tokenizer *t, int32_t id, size_t *len)
{
    bool is_added;
    const char *s = tokenizer_bytes(t, id, len, &is_added);

    if (s == NULL) { /* outside the vocabulary: chat_answer_push() refuses it */
        *len = 0;
        return "";
    }
    return s;
}

/* The token's text as a JSON string, with `mark` in front if it is no text by itself. */
static void put_text(const char *s, size_t n, const char *mark, struct buf *out)
{
    size_t good = utf8_valid_prefix(s, n);

    buf_puts(out, "\"");
    if (good < n)
        buf_puts(out, mark);
    while (n > 0) {
        json_write_escaped(out, s, good);
        s += good;
        n -= good;
        if (n > 0) { /* a backslash, as JSON spells it */
            buf_printf(out, "\\\\x%02x", (unsigned char)*s++);
            n--;
        }
        good = utf8_valid_prefix(s, n);
    }
    buf_puts(out, "\"");
}

static void put_logprob(float logprob, struct buf *out)
{
    if (isnan(logprob))
        buf_puts(out, "null");
    else if (isinf(logprob))
        buf_puts(out, "-9999.0");
    else
        buf_printf(out, "%.9g", (double)logprob);
}

static void put_chat_entry(const struct tokenizer *t, const struct entry *e, struct buf *out)
{
    size_t n;
    const char *s = bytes_of(t, e->id, &n);

    buf_puts(out, "{\"token\":");
    put_text(s, n, "", out);
    buf_puts(out, ",\"logprob\":");
    put_logprob(e->logprob, out);
    buf_puts(out, ",\"bytes\":[");
    for (size_t i = 0; i < n; i++)
        buf_printf(out, i > 0 ? ",%u" : "%u", (unsigned char)s[i]);
    buf_puts(out, "]");
}

static void put_chat_token(const struct tokenizer *t, const struct shown *s, struct buf *out)
{
    put_chat_entry(t, &s->token.entry, out);
    buf_puts(out, ",\"top_logprobs\":[");
    for (uint32_t k = 0; k < s->token.n_top; k++) {
        buf_puts(out, k > 0 ? "," : "");
        put_chat_entry(t, &s->top[k], out);
        buf_puts(out, "}");
    }
    buf_puts(out, "]}");
}

static void put_name(const struct tokenizer *t, const struct shown *s, struct buf *out)
{
    size_t n;
    const char *text = bytes_of(t, s->token.entry.id, &n);

    put_text(text, n, "bytes:", out);
}

static void put_number(const struct tokenizer *t, const struct shown *s, struct buf *out)
{
    (void)t;
    put_logprob(s->token.entry.logprob, out);
}

static void put_pair(const struct tokenizer *t, const struct entry *e, bool first, struct buf *out)
{
    size_t n;
    const char *text = bytes_of(t, e->id, &n);

    buf_puts(out, first ? "" : ",");
    put_text(text, n, "bytes:", out);
    buf_puts(out, ":");
    put_logprob(e->logprob, out);
}

/* The most probable ones by their text, and the token itself in any case. */
static void put_top(const struct tokenizer *t, const struct shown *s, struct buf *out)
{
    bool itself = false;

    if (isnan(s->token.entry.logprob)) {
        buf_puts(out, "null");
        return;
    }
    buf_puts(out, "{");
    for (uint32_t k = 0; k < s->token.n_top; k++) {
        put_pair(t, &s->top[k], k == 0, out);
        itself |= s->top[k].id == s->token.entry.id;
    }
    if (!itself)
        put_pair(t, &s->token.entry, s->token.n_top == 0, out);
    buf_puts(out, "}");
}

/* Runs over the tokens, with commas between. */
static void put_each(const struct token_logprobs *l, const struct tokenizer *t,
                     void (*put)(const struct tokenizer *, const struct shown *, struct buf *),
                     struct buf *out)
{
    struct shown s = {.top = (const struct entry *)(const void *)l->top.data};

    for (size_t i = 0; i < l->n; i++) {
        memcpy(&s.token, l->tokens.data + i * sizeof(s.token), sizeof(s.token));
        buf_puts(out, i > 0 ? "," : "");
        put(t, &s, out);
        if (s.token.n_top > 0) /* else there may be none at all: NULL */
            s.top += s.token.n_top;
    }
}

/* Every character begins with one byte that is no continuation. */
static size_t count_characters(const struct tokenizer *t, int32_t id)
{
    size_t n, characters = 0;
    const char *s = bytes_of(t, id, &n);

    for (size_t i = 0; i < n; i++)
        characters += ((unsigned char)s[i] & 0xC0) != 0x80;
    return characters;
}

static void put_offsets(struct token_logprobs *l, const struct tokenizer *t, struct buf *out)
{
    for (size_t i = 0; i < l->n; i++) {
        struct token token;

        memcpy(&token, l->tokens.data + i * sizeof(token), sizeof(token));
        buf_printf(out, i > 0 ? ",%zu" : "%zu", l->text_offset);
        l->text_offset += count_characters(t, token.entry.id);
    }
}

void token_logprobs_write(struct token_logprobs *l, enum token_logprobs_style style,
                          const struct tokenizer *t, struct buf *out)
{
    if (style == LOGPROBS_RESPONSES) {
        buf_puts(out, "[");
        put_each(l, t, put_chat_token, out);
        buf_puts(out, "]");
    } else if (style == LOGPROBS_CHAT) {
        buf_puts(out, "{\"content\":[");
        put_each(l, t, put_chat_token, out);
        buf_puts(out, "],\"refusal\":null}");
    } else {
        buf_puts(out, "{\"tokens\":[");
        put_each(l, t, put_name, out);
        buf_puts(out, "],\"token_logprobs\":[");
        put_each(l, t, put_number, out);
        buf_puts(out, "],\"top_logprobs\":[");
        put_each(l, t, put_top, out);
        buf_puts(out, "],\"text_offset\":[");
        put_offsets(l, t, out);
        buf_puts(out, "]}");
    }
    token_logprobs_drop(l);
}

void token_logprobs_drop(struct token_logprobs *l)
{
    l->n = l->n_prompt = l->tokens.len = l->top.len = 0;
}

/* ---- SGLang's members ---- */

struct meta_style {
    bool tops, text;
};

/* [logprob, id, text] */
static void put_triple(const struct tokenizer *t, const struct entry *e, bool text, struct buf *out)
{
    size_t n;
    const char *s = bytes_of(t, e->id, &n);

    buf_puts(out, "[");
    put_logprob(e->logprob, out);
    buf_printf(out, ",%d,", e->id);
    if (text)
        put_text(s, n, "", out);
    else
        buf_puts(out, "null");
    buf_puts(out, "]");
}

/* Tokens [from, to): each itself, or the list of its most probable ones. */
static void put_range(const struct token_logprobs *l, const struct tokenizer *t, size_t from,
                      size_t to, struct meta_style style, struct buf *out)
{
    const struct entry *top = (const struct entry *)(const void *)l->top.data;
    struct token token;
    size_t top_at = 0;

    buf_puts(out, "[");
    for (size_t i = 0; i < to; i++, top_at += token.n_top) {
        memcpy(&token, l->tokens.data + i * sizeof(token), sizeof(token));
        if (i < from)
            continue;
        buf_puts(out, i > from ? "," : "");
        if (!style.tops) {
            put_triple(t, &token.entry, style.text, out);
            continue;
        }
        buf_puts(out, token.n_top > 0 ? "[" : "null");
        for (uint32_t k = 0; k < token.n_top; k++) {
            buf_puts(out, k > 0 ? "," : "");
            put_triple(t, &top[top_at + k], style.text, out);
        }
        buf_puts(out, token.n_top > 0 ? "]" : "");
    }
    buf_puts(out, "]");
}

void token_logprobs_write_meta(const struct token_logprobs *l, bool tops, bool text,
                               const struct tokenizer *t, struct buf *out)
{
    struct meta_style style = {false, text};

    buf_puts(out, "\"input_token_logprobs\":");
    put_range(l, t, 0, l->n_prompt, style, out);
    buf_puts(out, ",\"output_token_logprobs\":");
    put_range(l, t, l->n_prompt, l->n, style, out);
    buf_printf(out, ",\"output_token_logprobs_length\":%zu", l->n - l->n_prompt);
    if (!tops)
        return;
    style.tops = true;
    buf_puts(out, ",\"input_top_logprobs\":");
    put_range(l, t, 0, l->n_prompt, style, out);
    buf_puts(out, ",\"output_top_logprobs\":");
    put_range(l, t, l->n_prompt, l->n, style, out);
}

void token_logprobs_deinit(struct token_logprobs *l)
{
    buf_deinit(&l->tokens);
    buf_deinit(&l->top);
    *l = (struct token_logprobs){0};
}
