#include "common/model/model.h"

#include <semaphore.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/log.h"
#include "common/model/device_group.h"
#include "common/model/model_debug.h"
#include "common/model/rank.h"
#include "common/model/safetensors.h"
#include "common/model/team.h"
#include "common/model/twins.h"
#include "common/model/weights.h"

/* How long one operation of the reference kernels may take on a large model; those of the others
 * take a fraction of a second. */
enum { REF_BEAT_MS = 480000 };

/* The step at which a test's rank stops for good. */
enum { STALL_STEP = 3 };

struct model {
    struct model_config config;
    struct kv_geometry geometry;
    struct safetensors *files;
    int n_ranks;
    struct rank *ranks;  /* [n_ranks]; [0] is the caller's */
    struct comm **comms; /* [n_ranks]; NULL: one rank */
    struct team *team;   /* NULL: one rank */
    struct twins twins;  /* the KV and its states */
    uint64_t fingerprint;
    int max_seqs, max_logit_rows;
    float *host_logits;      /* where the device's cannot be read in place; else NULL */
    uint64_t n_rows_read;    /* of logits, that came to the host */
    int stall_rank, n_steps; /* tests; written by rank 0 before a step */
};

/* ---- opening ---- */

enum status_code model_geometry_of(const struct model_config *c, struct kv_geometry *out,
                                   struct status *st)
{
    struct kv_geometry_params p = {
        c->n_layers + c->n_mtp, c->compress_ratios, c->head_dim, c->rope_dim,
        c->index_head_dim,      c->window};

    return kv_geometry_init(out, &p, st);
}

/* The threads of one rank: ranks share out the CPUs. */
static int threads_of_rank(const struct model *m, const struct model_options *opt)
{
    int all = opt->n_threads > 0 ? opt->n_threads : pool_usable_cpus();

    return all > m->n_ranks ? all / m->n_ranks : 1;
}

static enum status_code make_ranks(struct model *m, struct status *st)
{
    m->ranks = calloc((size_t)m->n_ranks, sizeof(*m->ranks));
    m->comms = calloc((size_t)m->n_ranks, sizeof(struct comm *));
    if (m->ranks == NULL || m->comms == NULL)
        return status_set(st, ST_EXHAUSTED, "no memory for %d ranks", m->n_ranks);
    for (int i = 0; i < m->n_ranks; i++) {
        m->ranks[i].config = &m->config;
        m->ranks[i].geometry = &m->geometry;
        m->ranks[i].shard = shard_make(&m->config, i, m->n_ranks);
    }
    m->twins = (struct twins){.ranks = m->ranks, .n = 1};
    return status_ok(st);
}

/* The ranks meet: on devices when these are open, on hosts before, because there a rank's work is
 * watched from its first operation on. */
static enum status_code open_group(struct model *m, const struct model_options *opt, bool device,
                                   struct status *st)
{
    bool slow = opt->cpu_isa != NULL && strcmp(opt->cpu_isa, "ref") == 0;
    struct comm_options group = {.n_ranks = m->n_ranks,
                                 .beat_ms = slow ? REF_BEAT_MS : 0,
                                 .on_failure = opt->on_group_failure,
                                 .arg = opt->on_group_failure_arg};

    if (m->n_ranks == 1)
        return status_ok(st);
    if ((device ? device_group_new(m->ranks, &group, opt->nccl_library, m->comms, st)
                : comm_cpu_new(&group, m->comms, st)) != ST_OK)
        return st->code;
    for (int i = 0; i < m->n_ranks; i++) {
        m->ranks[i].comm = m->comms[i];
        m->ranks[i].own_kv = device;
    }
    m->twins.n = device ? m->n_ranks : 1;
    return team_new(m->comms, m->n_ranks, &m->team, st);
}

static void log_shards(const struct model *m)
{
    const struct shard *s = &m->ranks[0].shard;

    if (m->n_ranks == 1)
        return;
    log_info("%d ranks on %s, threads each: %d; cut: experts%s%s%s%s", m->n_ranks,
             comm_name(m->comms[0]), pool_threads(m->ranks[0].pool),
             s->heads ? ", attention heads" : "", s->out ? ", attention output" : "",
             s->index ? ", indexer queries" : "", s->vocab ? ", head" : "");
    if (!s->heads)
        log_warn("attention heads are on every rank: %d heads of %d dims and %d groups do not "
                 "divide into %d shares of whole FP8 tiles",
                 m->config.n_heads, m->config.head_dim, m->config.o_groups, m->n_ranks);
}

static enum status_code open_parts(struct model *m, const struct model_options *opt,
                                   struct status *st)
{
    bool device = rank_on_device(opt);
    struct kernels *k;

    if (model_config_read(opt->path, &m->config, st) != ST_OK ||
        model_geometry_of(&m->config, &m->geometry, st) != ST_OK ||
        safetensors_open(opt->path, &m->files, st) != ST_OK || make_ranks(m, st) != ST_OK ||
        (!device && open_group(m, opt, device, st) != ST_OK))
        return st->code;
    for (int i = 0; i < m->n_ranks; i++)
        if (rank_open(&m->ranks[i], opt, m->n_ranks == 1 ? opt->n_threads : threads_of_rank(m, opt),
                      m->files, st) != ST_OK)
            return status_wrap(st, "checkpoint %s", opt->path);
    if (device && open_group(m, opt, device, st) != ST_OK)
        return st->code;
    m->fingerprint = weights_fingerprint(m->files, &m->config);
    k = &m->ranks[0].kernels;
    if (k->ops->dev_host(k, m->ranks[0].ws.logits) == NULL) {
        m->host_logits =
            malloc((size_t)m->max_logit_rows * (size_t)m->config.vocab_size * sizeof(float));
        if (m->host_logits == NULL)
            return status_set(st, ST_EXHAUSTED, "no memory for logits");
    }
    log_shards(m);
    return status_ok(st);
}

enum status_code model_open(const struct model_options *opt, struct model **out, struct status *st)
{
    struct model *m = calloc(1, sizeof(*m));

    if (m == NULL)
        return status_set(st, ST_EXHAUSTED, "no memory for a model");
    m->n_ranks = opt->tp_size > 0 ? opt->tp_size : 1;
    m->max_seqs = opt->max_batch_seqs;
    m->max_logit_rows = opt->max_logit_rows;
    m->stall_rank = opt->inject_stall_rank;
    if (open_parts(m, opt, st) != ST_OK)
        model_free(m);
    else
        *out = m;
    return st->code;
}

void model_free(struct model *m)
{
    if (m == NULL)
        return;
    if (!team_free(m->team)) {
        log_error("a rank is stuck: the model's memory is left to the end of the process");
        return;
    }
    for (int i = 0; m->comms != NULL && i < m->n_ranks; i++) { /* before the devices they use */
        comm_free(m->comms[i]);
        m->ranks[i].comm = NULL;
    }
    for (int i = 0; m->ranks != NULL && i < m->n_ranks; i++)
        rank_close(&m->ranks[i]);
    safetensors_close(m->files);
    free(m->ranks);
    free(m->comms);
    free(m->host_logits);
    free(m);
}

/* ---- getters ---- */

const struct model_config *model_get_config(const struct model *m)
{
    return &m->config;
}

const struct kv_geometry *model_get_geometry(const struct model *m)
{
    return &m->geometry;
}

uint64_t model_fingerprint(const struct model *m)
{
    return m->fingerprint;
}

uint64_t model_weight_bytes(const struct model *m)
{
    uint64_t sum = 0;

    for (int i = 0; i < m->n_ranks; i++)
        sum += m->ranks[i].weights->bytes;
    return sum;
}

void model_weight_classes(const struct model *m, uint64_t *out)
{
    memset(out, 0, WEIGHT_CLASSES * sizeof(*out));
    for (int i = 0; i < m->n_ranks; i++)
        for (int k = 0; k < WEIGHT_CLASSES; k++)
            out[k] += m->ranks[i].weights->class_bytes[k];
}

uint64_t model_workspace_bytes(const struct model *m)
{
    uint64_t sum = 0;

    for (int i = 0; i < m->n_ranks; i++)
        sum += m->ranks[i].ws.bytes;
    return sum;
}

bool model_room(const struct model *m, struct kernel_room *out)
{
    struct kernel_room one;

    if (m->ranks[0].kernels.ops->room == NULL)
        return false;
    for (int i = 0; i < m->n_ranks; i++) {
        struct kernels *k = &m->ranks[i].kernels;

        k->ops->room(k, &one);
        if (i == 0 || one.left < out->left)
            *out = one;
    }
    return true;
}

uint64_t model_recorded_bytes(const struct model *m)
{
    uint64_t sum = 0;

    for (int i = 0; i < m->n_ranks; i++)
        sum += m->ranks[i].recordings.bytes;
    return sum;
}

const char *model_backend_name(const struct model *m)
{
    return m->ranks[0].kernels.ops->name;
}

int model_n_ranks(const struct model *m)
{
    return m->n_ranks;
}

void model_rank_bytes(const struct model *m, int rank, uint64_t *weights, uint64_t *workspace)
{
    *weights = m->ranks[rank].weights->bytes;
    *workspace = m->ranks[rank].ws.bytes;
}

/* ---- KV memory ---- */

enum status_code model_kv_alloc(struct model *m, uint32_t n_pages, uint32_t n_slots,
                                struct kv_memory *out, struct status *st)
{
    struct kv_memory kv = {.n_pages = n_pages, .n_slots = n_slots};

    /* One more of each, for what fills up recorded steps. */
    kv.pages = twins_alloc(&m->twins, (n_pages + (size_t)1) * m->geometry.page_bytes);
    kv.slots = twins_alloc(&m->twins, (n_slots + (size_t)1) * m->geometry.slot_bytes);
    if (dev_is_null(kv.pages) || dev_is_null(kv.slots)) {
        model_kv_free(m, &kv);
        return status_set(st, ST_EXHAUSTED, "no memory for %u KV pages and %u state slots", n_pages,
                          n_slots);
    }
    *out = kv;
    return status_ok(st);
}

void model_kv_free(struct model *m, struct kv_memory *kv)
{
    twins_free(&m->twins, kv->pages);
    twins_free(&m->twins, kv->slots);
    *kv = (struct kv_memory){0};
}

static int least(int a, int b)
{
    return a < b ? a : b;
}

enum status_code model_record(struct model *m, const struct kv_memory *kv, int max_seqs,
                              int max_tokens, struct status *st)
{
    int most = least(m->max_logit_rows, m->ranks[0].kernels.dims.max_rows);
    int seqs = least(least(max_seqs, m->max_seqs), most);

    status_ok(st);
    for (int i = 0; i < m->n_ranks && st->code == ST_OK; i++)
        rank_record(&m->ranks[i], kv, seqs, least(seqs * max_tokens, most), st);
    return st->code;
}

bool model_kv_is_host(const struct model *m)
{
    return m->ranks[0].kernels.ops->dev_share == NULL;
}

void *model_host_address(struct model *m, struct dev_ptr p)
{
    return m->ranks[0].kernels.ops->dev_host(&m->ranks[0].kernels, p);
}

/* ---- a batch ---- */

static enum status_code check_span(const struct model *m, const struct model_span *s,
                                   struct status *st)
{
    if (s->n_tokens < 1 || s->start < 0 ||
        s->start + s->n_tokens > m->ranks[0].kernels.dims.max_context)
        return status_set(st, ST_INVALID, "a span of %d tokens at position %lld, the context is %d",
                          s->n_tokens, (long long)s->start, m->ranks[0].kernels.dims.max_context);
    for (int i = 0; i < s->n_tokens; i++)
        if (s->tokens[i] < 0 || s->tokens[i] >= m->config.vocab_size)
            return status_set(st, ST_INVALID, "token %d is outside the vocabulary of %d",
                              s->tokens[i], m->config.vocab_size);
    return status_ok(st);
}

static enum status_code check_batch(const struct model *m, const struct model_span *spans, int n,
                                    struct status *st)
{
    int64_t rows = 0, logits = 0;

    for (int i = 0; i < n; i++) {
        if (check_span(m, &spans[i], st) != ST_OK)
            return st->code;
        rows += spans[i].n_tokens;
        logits += rank_logit_rows(&spans[i]);
    }
    if (n < 1 || n > m->max_seqs || rows > m->ranks[0].kernels.dims.max_rows ||
        logits > m->max_logit_rows)
        return status_set(
            st, ST_INVALID,
            "a batch of %d sequences, %lld tokens, %lld rows of logits; at most %d, %d, %d", n,
            (long long)rows, (long long)logits, m->max_seqs, m->ranks[0].kernels.dims.max_rows,
            m->max_logit_rows);
    return status_ok(st);
}

/* ---- steps ---- */

/* What all ranks are told to do. */
struct step {
    struct model *m;
    void (*run)(struct rank *r, const struct step *s);
    const struct kv_memory *kv;
    const struct model_span *spans;
    const int32_t *next_tokens, *rows; /* MTP */
    const uint16_t *streams;           /* one layer */
    int n, layer;
};

static void run_forward(struct rank *r, const struct step *s)
{
    rank_forward(r, s->kv, s->spans, s->n);
}

static void run_mtp(struct rank *r, const struct step *s)
{
    rank_mtp(r, s->kv, s->next_tokens, s->rows, s->n);
}

static void run_mtp_next(struct rank *r, const struct step *s)
{
    rank_mtp_next(r, s->kv, s->spans, s->rows, s->n);
}

static void run_layer(struct rank *r, const struct step *s)
{
    rank_layer(r, s->kv, s->layer, s->spans, s->streams);
}

static void stop_for_good(void)
{
    sem_t never;

    sem_init(&never, 0, 0);
    for (;;)
        sem_wait(&never);
}

static void run_rank(void *arg, int rank)
{
    const struct step *s = arg;
    struct step own = *s;
    struct kv_memory kv;

    if (rank > 0 && rank == s->m->stall_rank && s->m->n_steps == STALL_STEP)
        stop_for_good();
    if (s->kv != NULL && s->m->twins.n > 1) {
        kv = *s->kv;
        kv.pages = twins_at(&s->m->twins, rank, kv.pages);
        kv.slots = twins_at(&s->m->twins, rank, kv.slots);
        own.kv = &kv;
    }
    s->run(&s->m->ranks[rank], &own);
}

static enum status_code run_step(const struct step *s, struct status *st)
{
    struct model *m = s->m;

    m->n_steps++;
    if (m->team != NULL)
        return team_run(m->team, run_rank, (void *)(uintptr_t)s, st);
    s->run(&m->ranks[0], s);
    return status_ok(st);
}

enum status_code model_logits(struct model *m, const float **logits, struct status *st)
{
    struct rank *r = &m->ranks[0];
    struct kernels *k = &r->kernels;
    size_t bytes = (size_t)r->n_logits * (size_t)m->config.vocab_size * sizeof(float);

    m->n_rows_read += (uint64_t)r->n_logits;
    if (m->host_logits != NULL) {
        if (k->ops->dev_read(k, m->host_logits, r->ws.logits, bytes) != 0)
            return status_set(st, ST_INTERNAL, "device: %s", k->error);
        *logits = m->host_logits;
        return status_ok(st);
    }
    if (k->ops->sync(k) != 0)
        return status_set(st, ST_INTERNAL, "device: %s", k->error);
    *logits = k->ops->dev_host(k, r->ws.logits);
    return status_ok(st);
}

bool model_samples(const struct model *m)
{
    return m->ranks[0].kernels.ops->sample != NULL;
}

enum status_code model_sample(struct model *m, const struct kernel_draw *draws, int n, int32_t *ids,
                              struct status *st)
{
    struct kernels *k = &m->ranks[0].kernels;

    if (k->ops->sample(k, m->ranks[0].ws.logits, draws, n, ids) != 0)
        return status_set(st, ST_INTERNAL, "device: %s", k->error);
    return status_ok(st);
}

/* Runs the step and hands out its logits. */
static enum status_code run_for_logits(const struct step *s, const float **logits,
                                       struct status *st)
{
    struct kernels *k = &s->m->ranks[0].kernels;

    if (run_step(s, st) != ST_OK)
        return st->code;
    if (logits != NULL)
        return model_logits(s->m, logits, st);
    if (k->ops->sync(k) != 0)
        return status_set(st, ST_INTERNAL, "device: %s", k->error);
    return status_ok(st);
}

enum status_code model_forward(struct model *m, const struct kv_memory *kv,
                               const struct model_span *spans, int n_spans, const float **logits,
                               struct status *st)
{
    struct step s = {.m = m, .run = run_forward, .kv = kv, .spans = spans, .n = n_spans};

    if (check_batch(m, spans, n_spans, st) != ST_OK)
        return st->code;
    return run_for_logits(&s, logits, st);
}

static enum status_code check_next(const struct model *m, const int32_t *tokens, int n,
                                   struct status *st)
{
    if (m->ranks[0].weights->n_mtp == 0)
        return status_set(st, ST_INVALID, "the checkpoint has no MTP block");
    for (int i = 0; i < n; i++)
        if (tokens[i] < 0 || tokens[i] >= m->config.vocab_size)
            return status_set(st, ST_INVALID, "token %d is outside the vocabulary of %d", tokens[i],
                              m->config.vocab_size);
    return status_ok(st);
}

enum status_code model_mtp(struct model *m, const struct kv_memory *kv, const int32_t *next_tokens,
                           const int32_t *rows, int n, const float **logits, struct status *st)
{
    int n_rows = m->ranks[0].n_rows;
    struct step s = {
        .m = m, .run = run_mtp, .kv = kv, .next_tokens = next_tokens, .rows = rows, .n = n};

    if (check_next(m, next_tokens, n_rows, st) != ST_OK)
        return st->code;
    if (n < 0 || n > m->max_logit_rows)
        return status_set(st, ST_INVALID, "%d rows of MTP logits, at most %d", n,
                          m->max_logit_rows);
    for (int i = 0; i < n; i++)
        if (rows[i] < 0 || rows[i] >= n_rows)
            return status_set(st, ST_INVALID, "row %d of a batch of %d", rows[i], n_rows);
    return run_for_logits(&s, logits, st);
}

enum status_code model_mtp_next(struct model *m, const struct kv_memory *kv,
                                const struct model_span *spans, const int32_t *from, int n,
                                const float **logits, struct status *st)
{
    int n_rows = m->ranks[0].n_rows;
    struct step s = {.m = m, .run = run_mtp_next, .kv = kv, .spans = spans, .rows = from, .n = n};

    if (check_next(m, NULL, 0, st) != ST_OK || check_batch(m, spans, n, st) != ST_OK)
        return st->code;
    for (int i = 0; i < n; i++)
        if (from[i] < 0 || from[i] >= n_rows || spans[i].n_tokens != 1)
            return status_set(st, ST_INVALID, "a draft from row %d of %d with %d tokens", from[i],
                              n_rows, spans[i].n_tokens);
    return run_for_logits(&s, logits, st);
}

bool model_has_mtp(const struct model *m)
{
    return m->ranks[0].weights->n_mtp > 0;
}

/* ---- memory beside the KV ---- */

struct dev_ptr model_memory_alloc(struct model *m, size_t bytes)
{
    return twins_alloc(&m->twins, bytes);
}

void model_memory_free(struct model *m, struct dev_ptr p)
{
    twins_free(&m->twins, p);
}

void model_memory_copy(struct model *m, struct dev_ptr dst, struct dev_ptr src, size_t bytes)
{
    for (int r = 0; r < m->twins.n; r++) {
        struct kernels *k = &m->ranks[r].kernels;

        k->ops->dev_copy(k, twins_at(&m->twins, r, dst), twins_at(&m->twins, r, src), bytes);
    }
}

/* One registration serves all devices of a process. */
enum status_code model_memory_share(struct model *m, void *host, size_t bytes, struct status *st)
{
    struct kernels *k = &m->ranks[0].kernels;

    if (k->ops->dev_share(k, host, bytes) != 0)
        return status_set(st, ST_EXHAUSTED, "%s", k->error);
    return status_ok(st);
}

void model_memory_unshare(struct model *m, void *host)
{
    m->ranks[0].kernels.ops->dev_unshare(&m->ranks[0].kernels, host);
}

/* What goes to the devices goes to every rank's, and arrives there as it does at rank 0's. */
static enum status_code move_to_twins(struct model *m, const struct kernel_piece *pieces, size_t n,
                                      const uint32_t *group_end, size_t n_groups,
                                      const uint32_t *crc, struct status *st)
{
    struct kernel_piece *own = malloc(n * sizeof(*own) + n_groups * sizeof(uint32_t) + 1);
    uint32_t *own_crc = (uint32_t *)(void *)(own + n);

    status_ok(st);
    if (own == NULL)
        return status_set(st, ST_EXHAUSTED, "no memory for a list of %zu pieces", n);
    for (int r = 1; r < m->twins.n && st->code == ST_OK; r++) {
        struct kernels *k = &m->ranks[r].kernels;

        for (size_t i = 0; i < n; i++) {
            own[i] = pieces[i];
            own[i].dst = twins_at(&m->twins, r, pieces[i].dst);
        }
        if (k->ops->dev_move(k, own, n, group_end, n_groups, true, own_crc) != 0)
            status_set(st, ST_INTERNAL, "device of rank %d: %s", r, k->error);
        else if (memcmp(own_crc, crc, n_groups * sizeof(*crc)) != 0)
            status_set(st, ST_INTERNAL, "rank %d got other bytes than rank 0: a faulty device", r);
    }
    free(own);
    return st->code;
}

enum status_code model_memory_move(struct model *m, const struct kernel_piece *pieces, size_t n,
                                   const uint32_t *group_end, size_t n_groups, bool to_device,
                                   uint32_t *crc, struct status *st)
{
    struct kernels *k = &m->ranks[0].kernels;

    if (k->ops->dev_move(k, pieces, n, group_end, n_groups, to_device, crc) != 0)
        return status_set(st, ST_INTERNAL, "device: %s", k->error);
    if (to_device && m->twins.n > 1)
        return move_to_twins(m, pieces, n, group_end, n_groups, crc, st);
    return status_ok(st);
}

/* ---- for tests ---- */

static enum status_code read_streams(struct model *m, struct dev_ptr from, uint16_t *out,
                                     struct status *st)
{
    struct kernels *k = &m->ranks[0].kernels;
    size_t bytes = (size_t)m->ranks[0].n_rows * (size_t)m->config.hc_mult *
                   (size_t)m->config.hidden_size * sizeof(*out);

    if (k->ops->dev_read(k, out, from, bytes) != 0)
        return status_set(st, ST_INTERNAL, "device: %s", k->error);
    return status_ok(st);
}

enum status_code model_debug_layer(struct model *m, const struct kv_memory *kv, int layer,
                                   const struct model_span *span, const uint16_t *in, uint16_t *out,
                                   struct status *st)
{
    struct step s = {
        .m = m, .run = run_layer, .kv = kv, .spans = span, .streams = in, .layer = layer};

    if (check_batch(m, span, 1, st) != ST_OK || run_step(&s, st) != ST_OK)
        return st->code;
    return read_streams(m, m->ranks[0].ws.streams, out, st);
}

enum status_code model_debug_streams(struct model *m, bool mtp, uint16_t *out, struct status *st)
{
    return read_streams(m, mtp ? m->ranks[0].ws.mtp_streams : m->ranks[0].ws.streams, out, st);
}

uint64_t model_debug_replays(const struct model *m)
{
    return m->ranks[0].n_replays;
}

uint64_t model_debug_rows_read(const struct model *m)
{
    return m->n_rows_read;
}
