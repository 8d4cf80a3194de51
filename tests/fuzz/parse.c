/* Fuzzes the output parser: any text, cut in any way, gives the same answer; finished arguments
 * are JSON objects; what is held back stays within its bound. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/json.h"
#include "common/base/utf8.h"
#include "common/text/parse.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct answer {
    struct buf reasoning, content, calls;
    size_t call_at; /* where the arguments of the last call begin in calls */
    uint32_t n_calls;
};

static void on_event(void *ctx, const struct parse_event *e)
{
    struct answer *a = ctx;
    struct json_doc *doc = NULL;
    struct status st;

    switch (e->kind) {
    case PARSE_REASONING:
    case PARSE_CONTENT:
        if (e->len == 0 || a->n_calls > 0)
            abort();
        buf_append(e->kind == PARSE_REASONING ? &a->reasoning : &a->content, e->text, e->len);
        break;
    case PARSE_CALL:
        if (e->call != a->n_calls++ || e->len == 0)
            abort();
        buf_puts(&a->calls, "\2");
        buf_append(&a->calls, e->text, e->len);
        buf_puts(&a->calls, "\3");
        a->call_at = a->calls.len;
        break;
    case PARSE_CALL_ARGUMENTS:
        if (e->call + 1 != a->n_calls || e->len == 0)
            abort();
        buf_append(&a->calls, e->text, e->len);
        break;
    case PARSE_CALL_END:
        if (json_parse(a->calls.data + a->call_at, a->calls.len - a->call_at,
                       JSON_LAST_KEY_WINS | JSON_LONE_SURROGATES, &doc, &st) != ST_OK ||
            json_root(doc)->type != JSON_OBJECT)
            abort();
        json_free(doc);
        break;
    }
}

static void parse_cut(const char *text, size_t len, const struct parse_options *opt, unsigned seed,
                      struct answer *a)
{
    struct parse *p = NULL;
    struct status st;

    if (parse_new(opt, on_event, a, &p, &st) != ST_OK)
        abort();
    for (size_t at = 0, n; at < len; at += n) {
        char *piece;

        n = len - at;
        if (seed != 0) {
            seed = seed * 1103515245u + 12345u;
            n = 1 + (seed >> 16) % 9;
            n = n < len - at ? n : len - at;
            while (at + n < len && ((uint8_t)text[at + n] & 0xc0) == 0x80)
                n++;
        }
        piece = malloc(n);
        memcpy(piece, text + at, n);
        parse_push(p, piece, n);
        free(piece);
        if (parse_held(p) > PARSE_HELD_MAX)
            abort();
    }
    parse_finish(p, "stop");
    parse_free(p);
}

static int differ(const struct buf *a, const struct buf *b)
{
    return a->len != b->len || (a->len > 0 && memcmp(a->data, b->data, a->len) != 0);
}

static void answer_deinit(struct answer *a)
{
    buf_deinit(&a->reasoning);
    buf_deinit(&a->content);
    buf_deinit(&a->calls);
}

/* The first byte chooses the start state and whether there are tools. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct parse_options opt;
    struct answer whole = {0};
    const char *text = (const char *)data + 1;
    size_t len;

    if (size == 0)
        return 0;
    opt = (struct parse_options){.start = (enum turn_start)(data[0] % 3),
                                 .tools = data[0] / 3 % 4 != 0};
    len = utf8_valid_prefix(text, size - 1);
    parse_cut(text, len, &opt, 0, &whole);
    for (unsigned seed = 1; seed < 4; seed++) {
        struct answer cut = {0};

        parse_cut(text, len, &opt, seed * 7919, &cut);
        if (differ(&whole.reasoning, &cut.reasoning) || differ(&whole.content, &cut.content) ||
            differ(&whole.calls, &cut.calls))
            abort();
        answer_deinit(&cut);
    }
    answer_deinit(&whole);
    return 0;
}
