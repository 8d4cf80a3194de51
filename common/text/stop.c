#include "common/text/stop.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* Knuth, Morris, Pratt: border[i] is the length of the longest proper prefix of the string that is
 * also a suffix of its first i bytes. */
struct pattern {
    char *text;
    size_t len;
    uint16_t *border;  /* [len + 1] */
    size_t n_matching; /* bytes of the string that the text ends with */
};

struct stop {
    struct pattern patterns[STOP_STRINGS_MAX];
    size_t n;
    bool trim;
    bool idle;       /* no pattern has begun */
    bool first[256]; /* bytes that begin one */
    struct buf held; /* the end of the text, withheld */
    int found;
};

static void fill_border(struct pattern *p)
{
    size_t k = 0;

    p->border[0] = p->border[1] = 0;
    for (size_t i = 1; i < p->len; i++) {
        while (k > 0 && p->text[i] != p->text[k])
            k = p->border[k];
        k += p->text[i] == p->text[k];
        p->border[i + 1] = (uint16_t)k;
    }
}

static bool pattern_init(struct pattern *p, const struct stop_string *s)
{
    p->text = malloc(s->len);
    p->border = calloc(s->len + 1, sizeof(*p->border));
    p->len = s->len;
    if (p->text == NULL || p->border == NULL)
        return false;
    memcpy(p->text, s->text, s->len);
    fill_border(p);
    return true;
}

/* Takes one byte; true when the string is complete. */
static bool pattern_step(struct pattern *p, char c)
{
    size_t k = p->n_matching;

    while (k > 0 && p->text[k] != c)
        k = p->border[k];
    k += p->text[k] == c;
    p->n_matching = k;
    return k == p->len;
}

enum status_code stop_new(size_t n, const struct stop_string *strings, bool trim, struct stop **out,
                          struct status *st)
{
    struct stop *s;

    if (n > STOP_STRINGS_MAX)
        return status_set(st, ST_INVALID, "%zu stop strings: at most %d are allowed", n,
                          STOP_STRINGS_MAX);
    for (size_t i = 0; i < n; i++)
        if (strings[i].len == 0 || strings[i].len > STOP_BYTES_MAX)
            return status_set(st, ST_INVALID, "stop string %zu has %zu bytes: 1 to %d are allowed",
                              i, strings[i].len, STOP_BYTES_MAX);
    s = calloc(1, sizeof(*s));
    if (s == NULL)
        return status_set(st, ST_EXHAUSTED, "no memory for stop strings");
    s->trim = trim;
    s->idle = true;
    s->found = -1;
    for (s->n = 0; s->n < n; s->n++) {
        if (!pattern_init(&s->patterns[s->n], &strings[s->n])) {
            s->n++;
            stop_free(s);
            return status_set(st, ST_EXHAUSTED, "no memory for stop strings");
        }
        s->first[(uint8_t)strings[s->n].text[0]] = true;
    }
    *out = s;
    return status_ok(st);
}

void stop_free(struct stop *s)
{
    if (s == NULL)
        return;
    for (size_t i = 0; i < s->n; i++) {
        free(s->patterns[i].text);
        free(s->patterns[i].border);
    }
    buf_deinit(&s->held);
    free(s);
}

/* One byte through all patterns; true when the longest of those that it completes is known. */
static bool step_all(struct stop *s, char c)
{
    s->idle = true;
    for (size_t i = 0; i < s->n; i++) {
        struct pattern *p = &s->patterns[i];

        if (pattern_step(p, c) && (s->found < 0 || p->len > s->patterns[s->found].len))
            s->found = (int)i;
        s->idle &= p->n_matching == 0;
    }
    return s->found >= 0;
}

/* How many bytes at the end of the text may belong to a stop string. */
static size_t n_undecided(const struct stop *s)
{
    size_t n = 0;

    for (size_t i = 0; s->trim && i < s->n; i++)
        if (s->patterns[i].n_matching > n)
            n = s->patterns[i].n_matching;
    return n;
}

/* Delivers all but the last `keep` bytes of what was held and text[len]; keeps those. */
static void deliver(struct stop *s, const char *text, size_t len, size_t keep, struct buf *out)
{
    if (keep <= len) {
        buf_append(out, s->held.data, s->held.len);
        buf_append(out, text, len - keep);
        s->held.len = 0;
        buf_append(&s->held, text + (len - keep), keep);
    } else {
        size_t n = s->held.len + len - keep;

        buf_append(out, s->held.data, n);
        memmove(s->held.data, s->held.data + n, s->held.len - n);
        s->held.len -= n;
        buf_append(&s->held, text, len);
    }
}

bool stop_push(struct stop *s, const char *text, size_t len, struct buf *out)
{
    size_t i = 0;

    if (s->found >= 0)
        return true;
    while (i < len) {
        while (s->idle && i < len && !s->first[(uint8_t)text[i]])
            i++;
        if (i == len)
            break;
        if (step_all(s, text[i++])) {
            deliver(s, text, i, s->trim ? s->patterns[s->found].len : 0, out);
            s->held.len = 0;
            return true;
        }
    }
    deliver(s, text, len, n_undecided(s), out);
    return false;
}

void stop_finish(struct stop *s, struct buf *out)
{
    if (s->found < 0)
        deliver(s, "", 0, 0, out);
}

int stop_found(const struct stop *s)
{
    return s->found;
}

const char *stop_text(const struct stop *s, size_t i, size_t *len)
{
    *len = s->patterns[i].len;
    return s->patterns[i].text;
}

size_t stop_held(const struct stop *s)
{
    return s->held.len;
}
