#include "deploy/baton/bench.h"

#include "common/base/clock.h"
#include "common/base/json.h"
#include "common/text/prefix_tokens.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

enum { MB = 1000000, COLD_RUNS = 5, WARM_RUNS = 7 };

/* One text being encoded, again and again. */
struct encode_run {
    const struct tokenizer *t;
    struct tokenizer_cache *cache;
    const char *text;
    size_t len;
    struct token_list ids;
    struct status st;
};

static void encode_once(void *ctx)
{
    struct encode_run *r = ctx;

    r->ids.n = 0;
    tokenizer_encode(r->t, r->cache, r->text, r->len, TOKENIZE_ADDED, &r->ids, &r->st);
}

static void forget_words(void *ctx)
{
    struct encode_run *r = ctx;

    tokenizer_cache_free(r->cache);
    r->cache = NULL;
    tokenizer_cache_new(0, &r->cache, &r->st);
}

/* Seconds to encode the text, with an empty word cache and with a full one. */
static enum status_code measure_encode(const struct tokenizer *t, const char *text, size_t len,
                                       double *cold, double *warm, struct status *st)
{
    struct encode_run r = {.t = t, .text = text, .len = len};

    forget_words(&r);
    encode_once(&r); /* the list of ids has its size now */
    *cold = bench_best(COLD_RUNS, encode_once, forget_words, &r);
    *warm = bench_best(WARM_RUNS, encode_once, NULL, &r);
    token_list_deinit(&r.ids);
    tokenizer_cache_free(r.cache);
    *st = r.st;
    return st->code;
}

/*
 * The peer: Hugging Face's tokenizers, one thread, the quicker of its two ways; it prints seconds
 * for a fresh tokenizer and for a used one, one line a file.
 */
static const char peer_script[] =
    "import os, sys, time\n"
    "os.environ['TOKENIZERS_PARALLELISM'] = 'false'\n"
    "import tokenizers\n"
    "def took(f):\n"
    "    start = time.perf_counter(); f(); return time.perf_counter() - start\n"
    "for path in sys.argv[2:]:\n"
    "    text = open(path, encoding='utf-8', newline='').read()\n"
    "    cold, warm = [], []\n"
    "    for _ in range(3):\n"
    "        for name in ('encode', 'encode_batch_fast'):\n"
    "            t = tokenizers.Tokenizer.from_file(sys.argv[1])\n"
    "            call = getattr(t, name, None)\n"
    "            if call is None: continue\n"
    "            arg = text if name == 'encode' else [text]\n"
    "            cold.append(took(lambda: call(arg)))\n"
    "            warm.append(min(took(lambda: call(arg)) for _ in range(2)))\n"
    "    print(min(cold), min(warm), flush=True)\n";

struct peer_time {
    double cold, warm; /* seconds; 0: no peer */
};

static void append_quoted(struct buf *command, const char *arg)
{
    buf_puts(command, " '");
    for (; *arg; arg++)
        buf_puts(command, *arg == '\'' ? "'\\''" : (char[]){*arg, '\0'});
    buf_puts(command, "'");
}

/* tokenizer.json itself, whatever --tokenizer-path names. */
static void json_path(const struct bench *b, char *out, size_t n)
{
    struct stat info;

    snprintf(out, n, "%s%s", b->tokenizer_path,
             stat(b->tokenizer_path, &info) == 0 && S_ISDIR(info.st_mode) ? "/tokenizer.json" : "");
}

static void run_peer(const struct bench *b, struct peer_time *times)
{
    struct buf command = {0};
    char path[4096], line[256];
    FILE *f;

    if (b->python == NULL)
        return;
    json_path(b, path, sizeof(path));
    append_quoted(&command, b->python);
    buf_puts(&command, " -c");
    append_quoted(&command, peer_script);
    append_quoted(&command, path);
    for (size_t i = 0; i < b->n_corpora; i++)
        append_quoted(&command, b->corpora[i].path);
    f = popen(buf_cstr(&command), "r");
    for (size_t i = 0; f != NULL && i < b->n_corpora; i++)
        if (fgets(line, sizeof(line), f) == NULL ||
            sscanf(line, "%lf %lf", &times[i].cold, &times[i].warm) != 2)
            break;
    if (f == NULL || pclose(f) != 0)
        fprintf(stderr, "baton bench-text: %s did not run the peer: figures come without it\n",
                b->python);
    buf_deinit(&command);
}

static void report_rate(const struct bench *b, const char *name, size_t bytes, double seconds,
                        double peer_seconds)
{
    double rate = (double)bytes / seconds / MB;

    if (peer_seconds > 0)
        bench_report_peer(b, name, rate, "MB/s", "tokenizers", (double)bytes / peer_seconds / MB,
                          peer_seconds / seconds);
    else
        bench_report(b, name, rate, "MB/s");
}

static enum status_code bench_corpora(const struct bench *b, struct status *st)
{
    struct peer_time *times = calloc(b->n_corpora, sizeof(*times));
    char name[300];

    if (times == NULL)
        return status_set(st, ST_EXHAUSTED, "no memory");
    run_peer(b, times);
    for (size_t i = 0; i < b->n_corpora; i++) {
        const struct bench_corpus *c = &b->corpora[i];
        double cold, warm;
        if (measure_encode(b->tokenizer, c->text.data, c->text.len, &cold, &warm, st) != ST_OK) {
            status_wrap(st, "%s", c->path);
            break;
        }
        snprintf(name, sizeof(name), "encode.cold.%s", c->name);
        report_rate(b, name, c->text.len, cold, times[i].cold);
        snprintf(name, sizeof(name), "encode.warm.%s", c->name);
        report_rate(b, name, c->text.len, warm, times[i].warm);
    }
    free(times);
    return st->code;
}

/* len bytes of the corpora, a few kilobytes of each in turn, ending at a character's end. */
static void mix_corpora(const struct bench *b, size_t len, struct buf *out)
{
    enum { PART = 8192 };

    for (size_t part = 0; out->len < len; part++) {
        const struct buf *text = &b->corpora[part % b->n_corpora].text;
        size_t at = part / b->n_corpora * PART % text->len, n = text->len - at;
        n = n < PART ? n : PART;
        n = n < len - out->len ? n : len - out->len;
        while (at > 0 && ((unsigned char)text->data[at] & 0xC0) == 0x80) {
            at--;
            n++;
        }
        while (at + n < text->len && ((unsigned char)text->data[at + n] & 0xC0) == 0x80)
            n++;
        buf_append(out, text->data + at, n);
    }
}

static enum status_code bench_prompt(const struct bench *b, struct status *st)
{
    struct buf text = {0};
    double cold = 0, warm = 0;

    mix_corpora(b, 4 * MB, &text);
    measure_encode(b->tokenizer, text.data, text.len, &cold, &warm, st);
    buf_deinit(&text);
    if (st->code != ST_OK)
        return st->code;
    bench_report(b, "encode.prompt_4mb.cold", cold * 1e3, "ms");
    bench_report(b, "encode.prompt_4mb.warm", warm * 1e3, "ms");
    return st->code;
}

static const struct {
    const char *name;
    const char *unit; /* repeated to fill a megabyte; NULL: random picks of letters */
    const char *letters;
} adversaries[] = {
    {"one_letter", "a", NULL},
    {"one_capital", "A", NULL},
    {"spaces", " ", NULL},
    {"newlines", "\n", NULL},
    {"digits", "7", NULL},
    {"less_than", "<", NULL},
    {"unfinished_special", "<｜place▁holder▁no▁", NULL},
    {"one_han", "中", NULL},
    {"nul", "", NULL},
    {"random_letters", NULL, "abcdefghijklmnopqrstuvwxyz"},
    {"random_mixed_case", NULL, "aAbBcCdDeEfFgGhHiIjJkKlLmMnNoOpPqQrRsStTuUvVwWxXyYzZ"},
    {"random_ab", NULL, "ab"},
    {"random_symbols", NULL, "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"},
    {"random_blanks", NULL, " \t\n\r"},
    {"random_bytes", NULL, " !0Aaz~\n\t\r\x01\x7f"},
};

static void fill_adversary(size_t i, struct buf *out)
{
    const char *unit = adversaries[i].unit, *letters = adversaries[i].letters;
    uint32_t x = 12345;

    while (out->len < MB) {
        if (unit != NULL && *unit != '\0') {
            buf_puts(out, unit);
        } else if (unit != NULL) {
            buf_append(out, "", 1);
        } else {
            x = x * 1664525 + 1013904223;
            buf_append(out, &letters[(x >> 8) % strlen(letters)], 1);
        }
    }
}

/* A megabyte of Han characters that no text has in this order: one piece, all of it. */
static void fill_random_han(struct buf *out)
{
    uint32_t x = 54321;

    while (out->len < MB) {
        uint32_t cp;
        char u[3];
        x = x * 1664525 + 1013904223;
        cp = 0x4E00 + (x >> 8) % (0x9FA6 - 0x4E00);
        u[0] = (char)(0xE0 | cp >> 12);
        u[1] = (char)(0x80 | (cp >> 6 & 0x3F));
        u[2] = (char)(0x80 | (cp & 0x3F));
        buf_append(out, u, 3);
    }
}

static enum status_code report_adversary(const struct bench *b, const char *name,
                                         const struct buf *text, double ordinary, struct status *st)
{
    double cold, warm;
    char full[64];

    if (measure_encode(b->tokenizer, text->data, text->len, &cold, &warm, st) != ST_OK)
        return st->code;
    snprintf(full, sizeof(full), "encode.adversarial_1mb.%s", name);
    bench_report_peer(b, full, cold * 1e3, "ms", "ordinary text", ordinary * 1e3, ordinary / cold);
    return st->code;
}

static enum status_code bench_adversaries(const struct bench *b, struct status *st)
{
    struct buf text = {0};
    double ordinary, warm;

    mix_corpora(b, MB, &text);
    if (measure_encode(b->tokenizer, text.data, text.len, &ordinary, &warm, st) == ST_OK)
        bench_report(b, "encode.ordinary_1mb.cold", ordinary * 1e3, "ms");
    for (size_t i = 0; st->code == ST_OK && i < sizeof(adversaries) / sizeof(*adversaries); i++) {
        text.len = 0;
        fill_adversary(i, &text);
        report_adversary(b, adversaries[i].name, &text, ordinary, st);
    }
    if (st->code == ST_OK) {
        text.len = 0;
        fill_random_han(&text);
        report_adversary(b, "random_han", &text, ordinary, st);
    }
    buf_deinit(&text);
    return st->code;
}

/* A conversation of a million tokens, then turns behind it. */
struct turn_run {
    struct prefix_tokens *cache;
    struct tokenizer_cache *words;
    struct prompt prompt;
    size_t text_len, n_specials; /* where the first turn ends */
    size_t tail;                 /* where the next tail's text is taken from */
    const struct buf *text;
    struct token_list ids;
    size_t n_reused;
    struct status st;
};

static void add_special(struct turn_run *r, const char *special)
{
    prompt_append_special(&r->prompt, -1, special, (uint32_t)strlen(special));
}

/* A tail that was not there before: an answer and a question, a kilobyte together. */
static void next_turn(void *ctx)
{
    struct turn_run *r = ctx;

    r->prompt.text.len = r->text_len;
    r->prompt.n_specials = r->n_specials;
    for (int i = 0; i < 2; i++) {
        size_t n = 450;
        r->tail = (r->tail + 5000) % (r->text->len - 1000);
        while (((unsigned char)r->text->data[r->tail] & 0xC0) == 0x80)
            r->tail++;
        while (((unsigned char)r->text->data[r->tail + n] & 0xC0) == 0x80)
            n++;
        prompt_append_text(&r->prompt, r->text->data + r->tail, n);
        add_special(r, i == 0 ? "<｜User｜>" : "<｜Assistant｜>");
    }
    add_special(r, "<think>");
    r->ids.n = 0;
}

static void encode_turn(void *ctx)
{
    struct turn_run *r = ctx;

    prefix_tokens_encode(r->cache, r->words, &r->prompt, &r->ids, &r->n_reused, &r->st);
}

/* The first turn: as much text as makes a million tokens. */
static enum status_code first_turn(const struct bench *b, struct turn_run *r, struct buf *text,
                                   struct status *st)
{
    while (r->ids.n < MB) {
        size_t done = text->len;
        mix_corpora(b, done + 200000, text);
        if (tokenizer_encode(b->tokenizer, r->words, text->data + done, text->len - done, 0,
                             &r->ids, st) != ST_OK)
            return st->code;
    }
    add_special(r, "<｜User｜>");
    prompt_append_text(&r->prompt, text->data, text->len);
    add_special(r, "<｜Assistant｜>");
    add_special(r, "<think>");
    r->text_len = r->prompt.text.len;
    r->n_specials = r->prompt.n_specials;
    r->ids.n = 0;
    encode_turn(r);
    *st = r->st;
    return st->code;
}

static enum status_code bench_turns(const struct bench *b, struct status *st)
{
    struct buf text = {0};
    struct turn_run r = {.text = &text};

    if (tokenizer_added_id(b->tokenizer, "<think>", 7) < 0)
        return status_ok(st); /* not V4's vocabulary */
    if (prefix_tokens_new(b->tokenizer, 0, &r.cache, st) == ST_OK &&
        tokenizer_cache_new(0, &r.words, st) == ST_OK && first_turn(b, &r, &text, st) == ST_OK) {
        bench_report(b, "encode.second_turn_1m_tokens",
                     bench_best(WARM_RUNS, encode_turn, next_turn, &r) * 1e3, "ms");
        bench_report(b, "prefix_tokens.memory", (double)prefix_tokens_memory(r.cache) / MB, "MB");
        *st = r.st;
    }
    prompt_deinit(&r.prompt);
    prefix_tokens_free(r.cache);
    tokenizer_cache_free(r.words);
    token_list_deinit(&r.ids);
    buf_deinit(&text);
    return st->code;
}

struct decode_run {
    const struct tokenizer *t;
    struct token_list ids;
    struct buf out;
    struct status st;
};

static void decode_once(void *ctx)
{
    struct decode_run *r = ctx;
    struct detokenizer d = {.n_held = 0};

    r->out.len = 0;
    for (size_t i = 0; i < r->ids.n; i++)
        detokenizer_push(&d, r->t, r->ids.ids[i], &r->out, &r->st);
    detokenizer_finish(&d, &r->out);
}

static enum status_code bench_detokenize(const struct bench *b, struct status *st)
{
    struct decode_run r = {.t = b->tokenizer};
    struct buf text = {0};

    mix_corpora(b, 4 * MB, &text);
    if (tokenizer_encode(b->tokenizer, NULL, text.data, text.len, 0, &r.ids, st) == ST_OK) {
        decode_once(&r);
        bench_report(b, "detokenize",
                     (double)r.ids.n / bench_best(WARM_RUNS, decode_once, NULL, &r) / MB,
                     "Mtokens/s");
    }
    token_list_deinit(&r.ids);
    buf_deinit(&r.out);
    buf_deinit(&text);
    return st->code;
}

struct open_run {
    const char *dir;
    struct status st;
};

static void open_once(void *ctx)
{
    struct open_run *r = ctx;
    struct tokenizer *t = NULL;

    if (tokenizer_open(r->dir, &t, &r->st) == ST_OK)
        tokenizer_free(t);
}

static bool copy_file(const char *from, const char *to)
{
    FILE *in = fopen(from, "rb"), *out = fopen(to, "wb");
    char block[65536];
    size_t n;
    bool ok = in != NULL && out != NULL;

    while (ok && (n = fread(block, 1, sizeof(block), in)) > 0)
        ok = fwrite(block, 1, n, out) == n;
    if (in != NULL)
        fclose(in);
    if (out != NULL)
        ok = fclose(out) == 0 && ok;
    return ok;
}

/* Start-up in a folder of its own: read-only for the text (no cache file is written), then with
 * the cache file. */
static enum status_code bench_open(const struct bench *b, struct status *st)
{
    char dir[] = "/tmp/baton-bench-XXXXXX", from[4096], to[64], cache[64];
    struct open_run r = {.dir = dir};
    double text, cached;

    if (mkdtemp(dir) == NULL)
        return status_set(st, ST_UNAVAILABLE, "no folder under /tmp: %s", strerror(errno));
    json_path(b, from, sizeof(from));
    snprintf(to, sizeof(to), "%s/tokenizer.json", dir);
    snprintf(cache, sizeof(cache), "%s/tokenizer.json.baton", dir);
    status_ok(st);
    if (!copy_file(from, to) || chmod(dir, 0555) != 0) {
        status_set(st, ST_UNAVAILABLE, "%s: %s", to, strerror(errno));
    } else {
        text = bench_best(5, open_once, NULL, &r);
        chmod(dir, 0755);
        open_once(&r);
        cached = bench_best(9, open_once, NULL, &r);
        *st = r.st;
        bench_report(b, "tokenizer.open_json", text * 1e3, "ms");
        bench_report(b, "tokenizer.open_cache_file", cached * 1e3, "ms");
    }
    chmod(dir, 0755);
    unlink(cache);
    unlink(to);
    rmdir(dir);
    return st->code;
}

static enum status_code bench_memory(const struct bench *b, struct status *st)
{
    struct tokenizer_cache *c;

    if (tokenizer_cache_new(0, &c, st) != ST_OK)
        return st->code;
    bench_report(b, "tokenizer.memory", (double)tokenizer_memory(b->tokenizer) / MB, "MB");
    bench_report(b, "tokenizer.memory_per_cache", (double)tokenizer_cache_memory(c) / MB, "MB");
    tokenizer_cache_free(c);
    return st->code;
}

enum status_code bench_tokenizer(const struct bench *b, struct status *st)
{
    if (bench_open(b, st) == ST_OK && bench_memory(b, st) == ST_OK &&
        bench_corpora(b, st) == ST_OK && bench_prompt(b, st) == ST_OK &&
        bench_turns(b, st) == ST_OK && bench_adversaries(b, st) == ST_OK)
        bench_detokenize(b, st);
    return st->code;
}
