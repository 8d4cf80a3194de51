#include "deploy/baton/commands.h"

#include "common/base/clock.h"
#include "common/base/flags.h"
#include "common/base/json.h"
#include "deploy/baton/bench.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

static void print_json(const char *name, double value, const char *unit, const char *peer,
                       double peer_value, double ratio)
{
    struct buf line = {0};

    buf_puts(&line, "{\"name\": ");
    json_write_string(&line, name, strlen(name));
    buf_printf(&line, ", \"value\": %.6g, \"unit\": \"%s\"", value, unit);
    if (peer != NULL)
        buf_printf(&line, ", \"peer\": \"%s\", \"peer_value\": %.6g, \"ratio\": %.6g", peer,
                   peer_value, ratio);
    printf("%s}\n", buf_cstr(&line));
    buf_deinit(&line);
}

void bench_report(const struct bench *b, const char *name, double value, const char *unit)
{
    if (b->json)
        print_json(name, value, unit, NULL, 0, 0);
    else
        printf("%-44s %10.4g %s\n", name, value, unit);
    fflush(stdout);
}

void bench_report_peer(const struct bench *b, const char *name, double value, const char *unit,
                       const char *peer, double peer_value, double ratio)
{
    if (b->json)
        print_json(name, value, unit, peer, peer_value, ratio);
    else
        printf("%-44s %10.4g %-8s %s %.4g, %.1f times\n", name, value, unit, peer, peer_value,
               ratio);
    fflush(stdout);
}

double bench_best(int runs, void (*run)(void *), void (*prepare)(void *), void *ctx)
{
    double best = 0;

    for (int i = 0; i < runs; i++) {
        uint64_t start;
        double took;
        if (prepare != NULL)
            prepare(ctx);
        start = clock_now_ns();
        run(ctx);
        took = (double)(clock_now_ns() - start) * 1e-9;
        if (i == 0 || took < best)
            best = took;
    }
    return best;
}

static enum status_code read_corpus(struct bench_corpus *c, const char *path, struct status *st)
{
    FILE *f = fopen(path, "rb");
    char block[65536];
    size_t n;

    *c = (struct bench_corpus){.path = path};
    c->name = strrchr(path, '/') ? strrchr(path, '/') + 1 : path;
    if (f == NULL)
        return status_set(st, ST_INVALID, "%s: %s", path, strerror(errno));
    while ((n = fread(block, 1, sizeof(block), f)) > 0)
        buf_append(&c->text, block, n);
    if (ferror(f) || c->text.len == 0)
        status_set(st, ST_INVALID, "%s: cannot be read, or is empty", path);
    else
        status_ok(st);
    fclose(f);
    return st->code;
}

static enum status_code bench_all(struct bench *b, const struct flag_list *files, struct status *st)
{
    for (size_t i = 0; i < files->n; i++, b->n_corpora++)
        if (read_corpus(&b->corpora[i], files->items[i], st) != ST_OK)
            return st->code;
    if (tokenizer_open(b->tokenizer_path, &b->tokenizer, st) != ST_OK)
        return st->code;
    return bench_tokenizer(b, st) == ST_OK ? bench_chat(b, st) : st->code;
}

int cmd_bench_text(int argc, char **argv)
{
    struct bench_corpus corpora[FLAG_LIST_MAX];
    struct bench b = {.corpora = corpora};
    struct flag_list files = {0};
    const char *more[FLAG_LIST_MAX];
    size_t n_more = FLAG_LIST_MAX;
    struct status st;
    const struct flag flags[] = {
        {"tokenizer-path", FLAG_STRING, &b.tokenizer_path, .arg = "PATH",
         .help = "tokenizer.json, or the directory that holds it"},
        {"corpus", FLAG_LIST, &files, .arg = "FILE",
         .help = "UTF-8 text to measure with; more files may follow"},
        {"json", FLAG_BOOL, &b.json, .help = "one JSON object a line"},
        {"python", FLAG_STRING, &b.python, .arg = "PYTHON",
         .help = "an interpreter that can import tokenizers: the peer that runs beside"},
        {0},
    };

    if (flags_parse(flags, argc, argv, &n_more, more, &st) != ST_OK) {
        if (st.code == ST_CANCELLED) {
            flags_help(flags, "baton bench-text --tokenizer-path PATH --corpus FILE...: how fast "
                              "text is handled here.");
            return 0;
        }
        fprintf(stderr, "baton bench-text: %s\n", st.msg);
        return 2;
    }
    for (size_t i = 0; i < n_more && files.n < FLAG_LIST_MAX; i++)
        files.items[files.n++] = more[i];
    if (b.tokenizer_path == NULL || files.n == 0) {
        fprintf(stderr, "baton bench-text: --tokenizer-path and --corpus are needed\n");
        return 2;
    }
    bench_all(&b, &files, &st);
    if (st.code != ST_OK)
        fprintf(stderr, "baton bench-text: %s\n", st.msg);
    for (size_t i = 0; i < b.n_corpora; i++)
        buf_deinit(&corpora[i].text);
    tokenizer_free(b.tokenizer);
    return st.code == ST_OK ? 0 : 1;
}
