/*
 * baton logits: runs a checkpoint over tokens, without workers: logits of every position, a greedy
 * continuation, the MTP block. What golden tests drive.
 */
#include "deploy/baton/commands.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/base/file.h"
#include "common/base/flags.h"
#include "common/base/log.h"
#include "common/comm/comm.h"
#include "common/model/model.h"
#include "common/model/safetensors.h"

enum { CHUNK_DEFAULT = 2048, TOKENS_FILE_MAX = 64 << 20 };

struct logits_options {
    const char *model_path, *tokens, *tokens_file, *device, *cpu_isa, *out;
    bool no_repack;
    int64_t chunk, greedy, threads, tp_size;
};

/* The run: one sequence in the only slot, pages in order. */
struct run {
    const struct logits_options *o;
    struct model *model;
    struct kv_memory kv;
    int32_t *tokens; /* [n_prompt + greedy] */
    int n_prompt, n_total, vocab;
    uint32_t *pages;
    int32_t *all_rows; /* [tokens of a chunk] */
    int32_t first;     /* the token after the prompt */
    int fd;            /* the output file, or -1 */
    struct tensor_out tensors[4];
    size_t n_tensors;
    struct tensor_out *logits, *greedy, *greedy_logits, *mtp;
};

/* ---- tokens ---- */

static enum status_code parse_tokens(const char *text, struct run *r, struct status *st)
{
    size_t cap = 0;

    for (const char *p = text; *p != '\0';) {
        char *end;
        long long v;

        errno = 0;
        v = strtoll(p, &end, 10);
        if (end == p || errno != 0 || v < 0 || v > INT32_MAX)
            return status_set(st, ST_INVALID, "tokens: '%.20s' is no token id", p);
        if ((size_t)r->n_prompt == cap) {
            cap = cap == 0 ? 1024 : 2 * cap;
            r->tokens = realloc(r->tokens, cap * sizeof(*r->tokens));
            if (r->tokens == NULL)
                return status_set(st, ST_EXHAUSTED, "no memory for %zu tokens", cap);
        }
        r->tokens[r->n_prompt++] = (int32_t)v;
        p = end + strspn(end, ", \t\r\n");
    }
    if (r->n_prompt == 0)
        return status_set(st, ST_INVALID, "no tokens: --tokens 1,2,3 or --tokens-file FILE");
    r->n_total = r->n_prompt + (int)r->o->greedy;
    r->tokens = realloc(r->tokens, ((size_t)r->n_total + 1) * sizeof(*r->tokens));
    if (r->tokens == NULL)
        return status_set(st, ST_EXHAUSTED, "no memory for %d tokens", r->n_total);
    return status_ok(st);
}

static enum status_code read_tokens(struct run *r, struct status *st)
{
    struct buf text = {0};

    if (r->o->tokens_file == NULL)
        return parse_tokens(r->o->tokens != NULL ? r->o->tokens : "", r, st);
    if (file_read(r->o->tokens_file, TOKENS_FILE_MAX, &text, st) == ST_OK)
        parse_tokens(buf_cstr(&text), r, st);
    else
        status_wrap(st, "%s", r->o->tokens_file);
    buf_deinit(&text);
    return st->code;
}

/* ---- the output file ---- */

static struct tensor_out *add_tensor(struct run *r, const char *name, enum st_dtype dtype,
                                     int64_t rows, int64_t cols)
{
    struct tensor_out *t = &r->tensors[r->n_tensors++];

    *t = (struct tensor_out){.name = name, .dtype = dtype, .n_dims = cols > 0 ? 2 : 1};
    t->shape[0] = rows;
    t->shape[1] = cols;
    return t;
}

/* Logits can be many gigabytes: the file gets its shape now, and its rows as they are computed. */
static enum status_code open_output(struct run *r, struct status *st)
{
    r->fd = -1;
    if (r->o->out == NULL)
        return status_ok(st);
    r->logits = add_tensor(r, "logits", DTYPE_F32, r->n_prompt, r->vocab);
    if (model_get_config(r->model)->n_mtp > 0)
        r->mtp = add_tensor(r, "mtp_logits", DTYPE_F32, r->n_prompt, r->vocab);
    r->greedy_logits = add_tensor(r, "greedy_logits", DTYPE_F32, r->o->greedy, r->vocab);
    r->greedy = add_tensor(r, "greedy", DTYPE_I32, r->o->greedy, 0);
    if (safetensors_write(r->o->out, r->tensors, r->n_tensors, st) != ST_OK)
        return st->code;
    r->fd = open(r->o->out, O_WRONLY | O_CLOEXEC);
    return r->fd >= 0 ? status_ok(st)
                      : status_set(st, ST_INVALID, "%s: %s", r->o->out, strerror(errno));
}

static enum status_code put(struct run *r, const struct tensor_out *t, uint64_t at,
                            const void *data, size_t bytes, struct status *st)
{
    if (t == NULL)
        return status_ok(st);
    for (size_t done = 0; done < bytes;) {
        ssize_t n =
            pwrite(r->fd, (const char *)data + done, bytes - done, (off_t)(t->offset + at + done));

        if (n <= 0)
            return status_set(st, ST_INVALID, "%s: %s", r->o->out, strerror(errno));
        done += (size_t)n;
    }
    return status_ok(st);
}

static enum status_code put_rows(struct run *r, const struct tensor_out *t, int first, int n,
                                 const float *rows, struct status *st)
{
    size_t row = (size_t)r->vocab * sizeof(float);

    return put(r, t, (uint64_t)first * row, rows, (size_t)n * row, st);
}

/* ---- the forward ---- */

static int32_t best(const struct run *r, const float *logits)
{
    int32_t id = 0;

    for (int32_t i = 1; i < r->vocab; i++)
        if (logits[i] > logits[id])
            id = i;
    return id;
}

static struct model_span span_at(const struct run *r, int start, int n, enum model_logits logits)
{
    return (struct model_span){.tokens = r->tokens + start,
                               .n_tokens = n,
                               .start = start,
                               .slot = 0,
                               .pages = r->pages,
                               .logits = logits};
}

static enum status_code run_chunk(struct run *r, int start, int n, struct status *st)
{
    bool last = start + n == r->n_prompt, all = r->fd >= 0;
    struct model_span span = span_at(r, start, n,
                                     all    ? MODEL_LOGITS_ALL
                                     : last ? MODEL_LOGITS_LAST
                                            : MODEL_LOGITS_NONE);
    const float *logits;

    if (model_forward(r->model, &r->kv, &span, 1, &logits, st) != ST_OK ||
        put_rows(r, r->logits, start, all ? n : 0, logits, st) != ST_OK)
        return st->code;
    if (last)
        r->first = best(r, logits + (all ? (size_t)(n - 1) * (size_t)r->vocab : 0));
    if (r->mtp == NULL)
        return status_ok(st);
    r->tokens[r->n_prompt] = r->first; /* what follows the prompt */
    for (int i = 0; i < n; i++)
        r->all_rows[i] = i;
    if (model_mtp(r->model, &r->kv, r->tokens + start + 1, r->all_rows, all ? n : 0, &logits, st) !=
        ST_OK)
        return st->code;
    return put_rows(r, r->mtp, start, n, logits, st);
}

static enum status_code run_greedy(struct run *r, struct status *st)
{
    for (int i = 0; i < r->o->greedy; i++) {
        int at = r->n_prompt + i;
        struct model_span span = span_at(r, at, 1, MODEL_LOGITS_LAST);
        const float *logits;

        if (i == 0)
            r->tokens[at] = r->first;
        if (i + 1 == r->o->greedy)
            break;
        if (model_forward(r->model, &r->kv, &span, 1, &logits, st) != ST_OK ||
            put_rows(r, r->greedy_logits, i + 1, 1, logits, st) != ST_OK)
            return st->code;
        r->tokens[at + 1] = best(r, logits);
    }
    return put(r, r->greedy, 0, r->tokens + r->n_prompt, (size_t)r->o->greedy * sizeof(int32_t),
               st);
}

/* The logits that greedy[0] was taken from are those of the prompt's last position. */
static enum status_code copy_first_row(struct run *r, struct status *st)
{
    size_t bytes = (size_t)r->vocab * sizeof(float);
    float *row;
    int fd;

    if (r->fd < 0 || r->o->greedy == 0)
        return status_ok(st);
    row = malloc(bytes);
    fd = open(r->o->out, O_RDONLY | O_CLOEXEC);
    if (row == NULL || fd < 0 ||
        pread(fd, row, bytes, (off_t)(r->logits->offset + (uint64_t)(r->n_prompt - 1) * bytes)) !=
            (ssize_t)bytes)
        status_set(st, ST_INVALID, "%s: cannot read back", r->o->out);
    else
        put_rows(r, r->greedy_logits, 0, 1, row, st);
    free(row);
    if (fd >= 0)
        close(fd);
    return st->code;
}

static enum status_code run_all(struct run *r, struct status *st)
{
    int chunk = r->o->chunk > 0 ? (int)r->o->chunk : CHUNK_DEFAULT;

    for (int start = 0; start < r->n_prompt; start += chunk) {
        int n = r->n_prompt - start < chunk ? r->n_prompt - start : chunk;

        if (run_chunk(r, start, n, st) != ST_OK)
            return st->code;
    }
    if (copy_first_row(r, st) != ST_OK || run_greedy(r, st) != ST_OK)
        return st->code;
    return status_ok(st);
}

static enum status_code open_run(struct run *r, struct status *st)
{
    int chunk = r->o->chunk > 0 ? (int)r->o->chunk : CHUNK_DEFAULT;
    struct model_options m = {
        .path = r->o->model_path,
        .device = r->o->device,
        .cpu_isa = r->o->cpu_isa,
        .n_threads = (int)r->o->threads,
        .no_repack = r->o->no_repack,
        .tp_size = (int)r->o->tp_size,
        .max_batch_seqs = 1,
    };
    uint32_t n_pages;

    if (r->o->model_path == NULL)
        return status_set(st, ST_INVALID, "--model-path DIR is needed");
    if (read_tokens(r, st) != ST_OK)
        return st->code;
    m.max_batch_tokens = r->n_prompt < chunk ? r->n_prompt : chunk;
    m.max_context = r->n_total + 1;
    m.max_logit_rows = r->o->out != NULL ? m.max_batch_tokens : 1;
    if (model_open(&m, &r->model, st) != ST_OK)
        return st->code;
    r->vocab = model_get_config(r->model)->vocab_size;
    n_pages = kv_pages_for((uint64_t)m.max_context);
    r->pages = malloc(n_pages * sizeof(*r->pages));
    r->all_rows = malloc((size_t)m.max_batch_tokens * sizeof(*r->all_rows));
    if (r->pages == NULL || r->all_rows == NULL)
        return status_set(st, ST_EXHAUSTED, "no memory for a block table");
    for (uint32_t i = 0; i < n_pages; i++)
        r->pages[i] = i;
    if (model_kv_alloc(r->model, n_pages, 1, &r->kv, st) != ST_OK)
        return st->code;
    return open_output(r, st);
}

static void print_greedy(const struct run *r)
{
    printf("{\"greedy\": [");
    for (int i = 0; i < r->o->greedy; i++)
        printf("%s%d", i > 0 ? ", " : "", r->tokens[r->n_prompt + i]);
    printf("]}\n");
}

int cmd_logits(int argc, char **argv)
{
    struct logits_options o = {.device = "cpu", .cpu_isa = "auto", .tp_size = 1};
    const struct flag flags[] = {
        {"model-path", FLAG_STRING, &o.model_path, .arg = "DIR", .help = "checkpoint directory"},
        {"tokens", FLAG_STRING, &o.tokens, .arg = "1,2,3", .help = "the prompt's token ids"},
        {"tokens-file", FLAG_STRING, &o.tokens_file, .arg = "FILE",
         .help = "the same, from a file, separated by commas or blanks"},
        {"chunk-size", FLAG_INT, &o.chunk, 0, 65536, .arg = "N",
         .help = "tokens of one forward; 0: 2048"},
        {"greedy", FLAG_INT, &o.greedy, 0, 1 << 20, .arg = "K", .help = "tokens to continue with"},
        {"device", FLAG_STRING, &o.device, .arg = "cpu|cuda:N", .help = "where it runs"},
        {"cpu-isa", FLAG_CHOICE, &o.cpu_isa, .choices = "auto|ref|avx2|avx512|amx",
         .help = "highest instruction set used"},
        {"threads", FLAG_INT, &o.threads, 0, 1024, .arg = "N", .help = "0: one per CPU"},
        {"no-repack", FLAG_BOOL, &o.no_repack,
         .help = "use weights as mapped; the bits are the same"},
        {"tp-size", FLAG_INT, &o.tp_size, 1, COMM_RANKS_MAX, .arg = "N",
         .help = "ranks that share the model; the bits are the same"},
        {"out", FLAG_STRING, &o.out, .arg = "F.safetensors",
         .help = "write logits of all positions, greedy tokens and their logits, mtp_logits"},
        {0},
    };
    struct run r = {.o = &o, .fd = -1};
    struct status st;

    log_init("baton", LOG_WARN);
    if (flags_parse(flags, argc, argv, NULL, NULL, &st) == ST_CANCELLED) {
        flags_help(flags, "usage: baton logits --model-path DIR --tokens 1,2,3 [flags]\n");
        return 0;
    }
    if (st.code == ST_OK && open_run(&r, &st) == ST_OK && run_all(&r, &st) == ST_OK)
        print_greedy(&r);
    if (r.fd >= 0)
        close(r.fd);
    if (r.model != NULL && !dev_is_null(r.kv.pages))
        model_kv_free(r.model, &r.kv);
    model_free(r.model);
    free(r.tokens);
    free(r.pages);
    free(r.all_rows);
    if (st.code != ST_OK)
        fprintf(stderr, "baton logits: %s\n", st.msg);
    return st.code == ST_OK ? 0 : 1;
}
