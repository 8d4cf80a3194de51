/*
 * The chat half of bench-text: requests to prompts, output to deltas, deltas to events.
 */
#include "deploy/baton/bench.h"

#include <stdio.h>
#include <stdlib.h>

#include "common/text/chat.h"
#include "common/text/parse.h"
#include "router/chat_sse.h"

enum { MB = 1000000, RUNS = 7, OUTPUT_BYTES = 10 * MB, REQUESTS = 2000, EVENTS = 20000 };

/* ---- output ---- */

struct parse_run {
    struct buf text;
    size_t piece;   /* bytes a push takes; cut between characters */
    size_t n_bytes; /* delivered: keeps the work from being optimised away */
};

static void count_bytes(void *ctx, const struct parse_event *event)
{
    ((struct parse_run *)ctx)->n_bytes += event->len;
}

static void parse_once(void *ctx)
{
    static const struct parse_options opt = {.start = TURN_CONTENT, .tools = true};
    struct parse_run *r = ctx;
    struct parse *p;
    struct status st;

    if (parse_new(&opt, count_bytes, r, &p, &st) != ST_OK)
        return;
    for (size_t at = 0, n; at < r->text.len; at += n) {
        n = r->text.len - at < r->piece ? r->text.len - at : r->piece;
        while (at + n < r->text.len && ((unsigned char)r->text.data[at + n] & 0xc0) == 0x80)
            n++;
        parse_push(p, r->text.data + at, n);
    }
    parse_finish(p, "stop");
    parse_free(p);
}

/* The text without the bar that all markers are made of: markers would end the measurement. */
static void without_markers(const struct buf *text, struct buf *out)
{
    static const char bar[] = "｜";

    out->len = 0;
    for (size_t at = 0; at < text->len;) {
        const char *hit = memmem(text->data + at, text->len - at, bar, sizeof(bar) - 1);
        size_t n = hit == NULL ? text->len - at : (size_t)(hit - text->data) - at;

        buf_append(out, text->data + at, n);
        at += n + (hit == NULL ? 0 : sizeof(bar) - 1);
    }
}

/* `head`, then the unit again and again up to 10 MB, then `tail`; returns MB/s. */
static double measure_parse(const char *head, const char *unit, size_t len, const char *tail,
                            size_t piece)
{
    struct parse_run r = {.piece = piece};
    double took;

    buf_puts(&r.text, head);
    while (r.text.len < OUTPUT_BYTES)
        buf_append(&r.text, unit, len);
    buf_puts(&r.text, tail);
    took = bench_best(RUNS, parse_once, NULL, &r);
    took = (double)r.text.len / took / MB;
    buf_deinit(&r.text);
    return took;
}

static void bench_parse(const struct bench *b)
{
    static const char call[] = "<｜DSML｜invoke name=\"f\">\n<｜DSML｜parameter name=\"a\" "
                               "string=\"true\">";
    static const char end[] = "</｜DSML｜parameter>\n</｜DSML｜invoke>";
    static const char many[] = "<｜DSML｜invoke name=\"f\">\n<｜DSML｜parameter name=\"city\" "
                               "string=\"true\">Paris</｜DSML｜parameter>\n<｜DSML｜parameter "
                               "name=\"n\" string=\"false\">[1, 2]</｜DSML｜parameter>\n"
                               "</｜DSML｜invoke>\n";
    struct buf text = {0};
    char name[128];

    for (size_t i = 0; i < b->n_corpora; i++) {
        const struct bench_corpus *c = &b->corpora[i];

        without_markers(&c->text, &text);

        snprintf(name, sizeof(name), "parse.content.%s", c->name);
        bench_report(b, name, measure_parse("", text.data, text.len, "", 1 << 16), "MB/s");
        snprintf(name, sizeof(name), "parse.content.streamed.%s", c->name);
        bench_report(b, name, measure_parse("", text.data, text.len, "", 4), "MB/s");
        snprintf(name, sizeof(name), "parse.argument.%s", c->name);
        bench_report(b, name, measure_parse(call, text.data, text.len, end, 1 << 16), "MB/s");
    }
    bench_report(b, "parse.calls", measure_parse("", many, sizeof(many) - 1, "", 1 << 16), "MB/s");
    bench_report(b, "parse.only_less_than", measure_parse("", "<", 1, "", 1 << 16), "MB/s");
    bench_report(b, "parse.only_tag_starts",
                 measure_parse("", "<｜DSML｜", strlen("<｜DSML｜"), "", 1 << 16), "MB/s");
    buf_deinit(&text);
}

/* ---- requests ---- */

struct request_run {
    const struct bench *b;
    struct buf body;
    bool tokenize;
    struct chat_prompt prompt;
    struct tokenizer_cache *cache;
    struct token_list ids;
    bool failed;
};

static void serve_requests(void *ctx)
{
    static const struct chat_options opt = {.profile = CHAT_GA, .default_thinking = true};
    struct request_run *r = ctx;
    struct chat_error err;
    struct status st;

    for (int i = 0; i < REQUESTS; i++) {
        struct json_doc *doc = NULL;

        r->failed |= json_parse(r->body.data, r->body.len, CHAT_JSON_FLAGS, &doc, &st) != ST_OK ||
                     chat_request_render(json_root(doc), &opt, &r->prompt, &err) != ST_OK;
        json_free(doc);
        r->ids.n = 0;
        r->failed |=
            r->tokenize && tokenizer_encode_prompt(r->b->tokenizer, r->cache, &r->prompt.prompt,
                                                   &r->ids, &st) != ST_OK;
    }
}

/* A conversation of four messages whose JSON is 2 kB. */
static void make_body(const struct bench *b, struct buf *out)
{
    static const char *const roles[] = {"system", "user", "assistant", "user"};
    const struct buf *text = &b->corpora[0].text;
    size_t at = 0;

    buf_puts(out, "{\"model\": \"m\", \"stream\": true, \"messages\": [");
    for (int i = 0; i < 4; i++) {
        size_t n = text->len - at < 450 ? text->len - at : 450;

        while (at + n < text->len && ((unsigned char)text->data[at + n] & 0xc0) == 0x80)
            n++;
        buf_printf(out, "%s{\"role\": \"%s\", \"content\": ", i > 0 ? ", " : "", roles[i]);
        json_write_string(out, text->data + at, n);
        buf_puts(out, "}");
        at += n;
    }
    buf_puts(out, "], \"temperature\": 0.7, \"max_tokens\": 512}");
}

static enum status_code bench_requests(const struct bench *b, struct status *st)
{
    struct request_run r = {.b = b};

    if (tokenizer_cache_new(0, &r.cache, st) != ST_OK)
        return st->code;
    make_body(b, &r.body);
    bench_report(b, "chat.request_bytes", (double)r.body.len, "B");
    bench_report(b, "chat.render", bench_best(RUNS, serve_requests, NULL, &r) / REQUESTS * 1e6,
                 "us");
    r.tokenize = true;
    bench_report(b, "chat.render_and_tokenize",
                 bench_best(RUNS, serve_requests, NULL, &r) / REQUESTS * 1e6, "us");
    if (r.failed)
        status_set(st, ST_INTERNAL, "the benchmark's own request was refused");
    else
        status_ok(st);
    tokenizer_cache_free(r.cache);
    token_list_deinit(&r.ids);
    chat_prompt_deinit(&r.prompt);
    buf_deinit(&r.body);
    return st->code;
}

/* ---- events ---- */

struct sse_run {
    struct chat_sse sse;
    struct buf out;
};

static void write_events(void *ctx)
{
    static const char *const texts[] = {" the", " quick", "\n", " \"fox\"", " 中文", " jumps"};
    struct sse_run *r = ctx;

    for (int i = 0; i < EVENTS; i++) {
        const char *text = texts[i % 6];

        r->out.len = 0;
        chat_sse_text(&r->sse, 0, "content", text, strlen(text), NULL, &r->out);
    }
}

static void bench_events(const struct bench *b)
{
    struct sse_run r = {0};

    chat_sse_init(&r.sse, "chat.completion.chunk", "chatcmpl-0123456789abcdef01234567", 1700000000,
                  "deepseek-v4");
    bench_report(b, "sse.chunk", bench_best(RUNS, write_events, NULL, &r) / EVENTS * 1e9, "ns");
    chat_sse_deinit(&r.sse);
    buf_deinit(&r.out);
}

enum status_code bench_chat(const struct bench *b, struct status *st)
{
    bench_parse(b);
    bench_events(b);
    return bench_requests(b, st);
}
