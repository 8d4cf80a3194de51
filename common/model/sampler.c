#include "common/model/sampler.h"
#include "common/model/sampler_history.h"
#include "kernels/sampler_noise.h"
#include "common/model/sampler_rows.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define TEMPERATURE_MIN 1e-5f /* below it: greedy; so that 1 / temperature stays in range */
#define LOG2_E 0x1.71547652B82FEp0

/* A logit as it was before the call changed it. */
struct undo {
    int32_t id;
    float x;
};

struct sampler {
    const struct sampler_rows *rows;
    int32_t vocab, n_chunks;
    float *group_max;   /* [n_chunks * ROW_LANES], of the current row */
    float *chunk_max;   /* [n_chunks] */
    float *select;      /* [n_chunks]: kth_largest() reorders them */
    float *tail;        /* [ROW_CHUNK]: the last chunk, filled up with -inf */
    struct undo *undos; /* [vocab + SAMPLER_BIAS_MAX + SAMPLER_STOP_MAX + 1] */
    int32_t n_undos;
};

/* One row and how it is read. */
struct reading {
    struct sampler *s;
    struct sampler_row row;
    float best;         /* largest logit; -inf: none is a number */
    double temperature; /* 1 for a greedy draw */
    struct row_scale scale;
    double total; /* of the probabilities relative to the best; 0: not asked for yet */
};

/* What the filters leave is a beginning of the ranking: all that ranks before `end`. */
struct filters {
    int32_t top_k; /* 0: off */
    double top_p;  /* >= 1: off */
    struct row_rank end;
};

/* ---- new, free ---- */

static const struct sampler_rows *rows_of(enum cpu_isa isa)
{
#if defined(__x86_64__)
    if (isa >= CPU_ISA_AVX512)
        return &sampler_rows_avx512;
    if (isa >= CPU_ISA_AVX2)
        return &sampler_rows_avx2;
#endif
    (void)isa;
    return &sampler_rows_plain;
}

enum status_code sampler_new(int32_t vocab, enum cpu_isa isa_max, struct sampler **out,
                             struct status *st)
{
    struct sampler *s = calloc(1, sizeof(*s));
    enum cpu_isa best = kernels_cpu_best();
    size_t n_undos = (size_t)vocab + SAMPLER_BIAS_MAX + SAMPLER_STOP_MAX + 1;

    assert(vocab >= 1);
    if (s == NULL)
        return status_set(st, ST_EXHAUSTED, "no memory for a sampler");
    s->rows = rows_of(isa_max < best ? isa_max : best);
    s->vocab = vocab;
    s->n_chunks = (vocab - 1) / ROW_CHUNK + 1;
    s->group_max = malloc((size_t)s->n_chunks * ROW_LANES * sizeof(float));
    s->chunk_max = malloc((size_t)s->n_chunks * sizeof(float));
    s->select = malloc((size_t)s->n_chunks * sizeof(float));
    s->tail = malloc(ROW_CHUNK * sizeof(float));
    s->undos = malloc(n_undos * sizeof(*s->undos));
    if (s->group_max == NULL || s->chunk_max == NULL || s->select == NULL || s->tail == NULL ||
        s->undos == NULL) {
        sampler_free(s);
        return status_set(st, ST_EXHAUSTED, "no memory for a sampler of %d logits", vocab);
    }
    *out = s;
    return status_ok(st);
}

void sampler_free(struct sampler *s)
{
    if (s == NULL)
        return;
    free(s->group_max);
    free(s->chunk_max);
    free(s->select);
    free(s->tail);
    free(s->undos);
    free(s);
}

/* ---- step 1: adjusted logits ---- */

static void change(struct sampler *s, float *logits, int32_t id, float x)
{
    if (id < 0 || id >= s->vocab)
        return;
    s->undos[s->n_undos++] = (struct undo){id, logits[id]};
    logits[id] = x;
}

static void penalise(struct sampler *s, float *logits, const struct sampling_params *p,
                     const struct sampler_history *h)
{
    float r = p->repetition_penalty == 0 ? 1 : p->repetition_penalty;
    uint32_t n;
    const struct sampler_seen *seen = sampler_history_borrow(h, &n);

    for (uint32_t i = 0; i < n; i++) {
        float x = logits[seen[i].id];

        if (r != 1 && (seen[i].in_prompt || seen[i].n_output > 0))
            x = x < 0 ? x * r : x / r;
        if (seen[i].n_output > 0)
            x -= p->presence_penalty + p->frequency_penalty * (float)seen[i].n_output;
        change(s, logits, seen[i].id, x);
    }
}

static void adjust(struct sampler *s, float *logits, const struct sampling_params *p,
                   const struct sampler_history *h, uint32_t n_output)
{
    assert(p->n_bias <= SAMPLER_BIAS_MAX && p->n_stop_ids <= SAMPLER_STOP_MAX);
    s->n_undos = 0;
    if (h != NULL && sampler_history_needed(p))
        penalise(s, logits, p, h);
    for (uint32_t i = 0; i < p->n_bias; i++)
        if (p->bias_ids[i] >= 0 && p->bias_ids[i] < s->vocab)
            change(s, logits, p->bias_ids[i], logits[p->bias_ids[i]] + p->bias[i]);
    if (n_output >= p->min_new)
        return;
    change(s, logits, p->eos, -INFINITY);
    for (uint32_t i = 0; i < p->n_stop_ids; i++)
        change(s, logits, p->stop_ids[i], -INFINITY);
}

static void restore(struct sampler *s, float *logits)
{
    while (s->n_undos > 0) { /* last first: an id may be there more than once */
        const struct undo *u = &s->undos[--s->n_undos];

        logits[u->id] = u->x;
    }
}

/* ---- the row ---- */

static void read_row(struct sampler *s, const float *logits, float temperature, struct reading *r)
{
    int32_t n_whole = s->vocab / ROW_CHUNK, n_rest = s->vocab % ROW_CHUNK;

    *r = (struct reading){.s = s, .row = {logits, NULL, s->n_chunks}, .best = -INFINITY};
    if (n_rest > 0) {
        memcpy(s->tail, logits + (int64_t)n_whole * ROW_CHUNK, (size_t)n_rest * sizeof(float));
        for (int32_t i = n_rest; i < ROW_CHUNK; i++)
            s->tail[i] = -INFINITY;
        r->row.tail = s->tail;
    }
    s->rows->maxima(&r->row, s->group_max, s->chunk_max);
    for (int32_t c = 0; c < s->n_chunks; c++)
        r->best = s->chunk_max[c] > r->best ? s->chunk_max[c] : r->best;
    r->temperature = (double)temperature;
    r->scale = (struct row_scale){r->best, (float)(LOG2_E / r->temperature)};
}

static float logit_of(const struct reading *r, int32_t id)
{
    return r->row.logits[id];
}

static double total_of(struct reading *r)
{
    if (r->total == 0)
        r->total = r->s->rows->total(&r->row, r->scale);
    return r->total;
}

/* Lowest id of the largest logit, which is not -inf. */
static int32_t first_of(const struct reading *r)
{
    int32_t id = 0;

    while (r->s->chunk_max[id / ROW_CHUNK] != r->best)
        id += ROW_CHUNK;
    while (logit_of(r, id) != r->best)
        id++;
    return id;
}

static bool ranks_before(float x, int32_t id, struct row_rank r)
{
    return x > r.x || (x == r.x && id < r.id);
}

/* ---- step 3: filters ---- */

/* The k-th largest of v[0 .. n), 1 <= k <= n, by Hoare's partition; reorders v. No NaN in it. */
static float kth_largest(float *v, int32_t n, int32_t k)
{
    int32_t low = 0, high = n - 1;

    while (low < high) {
        float pivot = v[low + (high - low) / 2];
        int32_t i = low, j = high;

        while (i <= j) {
            while (v[i] > pivot)
                i++;
            while (v[j] < pivot)
                j--;
            if (i <= j) {
                float t = v[i];

                v[i++] = v[j];
                v[j--] = t;
            }
        }
        if (k - 1 <= j)
            high = j;
        else if (k - 1 >= i)
            low = i;
        else
            break;
    }
    return v[k - 1];
}

/* A logit that the k best reach at least: the k-th largest of the chunks' maxima. */
static float bound_of_best(const struct reading *r, int32_t k)
{
    struct sampler *s = r->s;

    if (k > s->n_chunks)
        return -INFINITY;
    memcpy(s->select, s->chunk_max, (size_t)s->n_chunks * sizeof(float));
    return kth_largest(s->select, s->n_chunks, k);
}

/* Smallest float that is x or more. */
static float float_at_least(double x)
{
    float f = (float)x;

    return (double)f < x ? nextafterf(f, INFINITY) : f;
}

static struct filters filters_of(struct reading *r, const struct sampling_params *p)
{
    struct filters f = {.top_k = p->top_k > 0 && p->top_k < r->s->vocab ? p->top_k : 0,
                        .top_p = (double)p->top_p,
                        .end = {-INFINITY, INT32_MAX}};

    if (f.top_k > 0)
        f.end.x = bound_of_best(r, f.top_k);
    if (p->min_p > 0) {
        double log_p = p->min_p < 1 ? noise_log((double)p->min_p) : 0;
        float least = float_at_least((double)r->best + r->temperature * log_p);

        f.end.x = least > f.end.x ? least : f.end.x;
    }
    return f;
}

/* Whether top_k and top_p keep the token; if not, the filters end before it from now on. */
static bool keeps(struct reading *r, struct filters *f, int32_t id)
{
    struct row_rank rank = {logit_of(r, id), id};
    int32_t n;
    double mass;

    if (f->top_k == 0 && f->top_p >= 1)
        return true;
    mass = r->s->rows->before(&r->row, r->s->chunk_max, r->scale, rank, &n);
    if (n == 0 ||
        ((f->top_k == 0 || n < f->top_k) && (f->top_p >= 1 || mass < f->top_p * total_of(r))))
        return true;
    f->end = rank;
    return false;
}

/* ---- step 4: the draw ---- */

struct winner {
    double score;
    int32_t id;
};

/* z + noise for every member of a group that the filters leave and that can win. */
static void try_group(const struct reading *r, const struct filters *f, const struct noise *noise,
                      int32_t group, struct winner *w)
{
    struct noise_group g = noise_group_of(noise, (uint32_t)group);
    int32_t c = group / ROW_LANES, lane = group % ROW_LANES;
    const float *x = row_chunk(&r->row, c);
    double reach = -noise_log(g.least);

    for (int32_t row = 0; row < NOISE_GROUP; row++) {
        int32_t at = row * ROW_LANES + lane, id = c * ROW_CHUNK + at;
        double z = ((double)x[at] - (double)r->best) / r->temperature, score = z + reach;

        if (!ranks_before(x[at], id, f->end) || !(score >= w->score))
            continue;
        if (row != g.row)
            score = z - noise_log(noise_member(noise, &g, id));
        if (score > w->score || (score == w->score && id < w->id))
            *w = (struct winner){score, id};
    }
}

/* row_search.bound for a group: least * e^(score - z) <= 1 is what a member needs, and least is at
 * least word / 2^36. One percent covers all rounding between here and there. */
static float search_bound(const struct winner *w)
{
    return 1.01f * NOISE_GROUP * 0x1p24f * expf((float)-w->score);
}

static int32_t draw(const struct reading *r, const struct filters *f, const struct noise *noise)
{
    struct sampler *s = r->s;
    struct winner w = {-INFINITY, INT32_MAX};
    struct row_search q = {.group_max = s->group_max,
                           .n_chunks = s->n_chunks,
                           .scale = r->scale,
                           .least = f->end.x,
                           .keys = {noise->keys[0], noise->keys[1]}};
    int32_t first = first_of(r);
    uint32_t groups;

    /* A good score to begin with: the most probable token's group. */
    try_group(r, f, noise, first / ROW_CHUNK * ROW_LANES + first % ROW_LANES, &w);
    for (int32_t c = 0;; c++) {
        q.bound = search_bound(&w);
        c = s->rows->search(&q, c, &groups);
        if (c == s->n_chunks)
            return w.id;
        for (; groups != 0; groups &= groups - 1)
            try_group(r, f, noise, c * ROW_LANES + __builtin_ctz(groups), &w);
    }
}

static bool is_greedy(const struct sampling_params *p)
{
    return !(p->temperature >= TEMPERATURE_MIN) || p->top_k == 1;
}

/*
 * A token of those that the filters keep. What they keep is a beginning of the ranking, so that it
 * need not be known where it ends: draw from a longer beginning; a winner that is kept is the
 * winner of the shorter one, too; one that is not tells of a shorter beginning to draw from. No
 * sorting, and with usual filters the first or second draw holds.
 */
static int32_t pick(struct reading *r, const struct sampling_params *p, uint64_t position)
{
    struct noise noise = noise_of(p->seed, position);
    struct filters f;
    int32_t id;

    if (is_greedy(p) || isinf(r->best))
        return first_of(r);
    f = filters_of(r, p);
    do
        id = draw(r, &f, &noise);
    while (!keeps(r, &f, id));
    return id;
}

/* ---- log probabilities ---- */

static float logprob_of(struct reading *r, float x)
{
    if (isinf(r->best))
        return x == r->best ? 0 : -INFINITY;
    if (!(x > -INFINITY))
        return -INFINITY;
    return (float)(((double)x - (double)r->best) / r->temperature - noise_log(total_of(r)));
}

/* Puts a token into the n best found so far. */
static void insert_top(struct sampler_logprobs *out, int32_t n, float x, int32_t id)
{
    int32_t i;

    if (out->n_top == n &&
        !ranks_before(x, id, (struct row_rank){out->top_logprobs[n - 1], out->top_ids[n - 1]}))
        return;
    if (out->n_top < n)
        out->n_top++;
    for (i = out->n_top - 1;
         i > 0 &&
         ranks_before(x, id, (struct row_rank){out->top_logprobs[i - 1], out->top_ids[i - 1]});
         i--) {
        out->top_logprobs[i] = out->top_logprobs[i - 1];
        out->top_ids[i] = out->top_ids[i - 1];
    }
    out->top_logprobs[i] = x;
    out->top_ids[i] = id;
}

/* The n best in rank order, with their logits; groups below what the n best reach are left out. */
static void find_top(const struct reading *r, int32_t n, struct sampler_logprobs *out)
{
    const struct sampler *s = r->s;
    float least;

    out->n_top = 0;
    n = n < SAMPLER_TOP_MAX ? n : SAMPLER_TOP_MAX;
    n = n < s->vocab ? n : s->vocab;
    if (n <= 0)
        return;
    least = bound_of_best(r, n);
    for (int32_t c = 0; c < s->n_chunks; c++) {
        const float *x = row_chunk(&r->row, c);

        for (int32_t lane = 0; s->chunk_max[c] >= least && lane < ROW_LANES; lane++)
            for (int32_t at = lane; s->group_max[c * ROW_LANES + lane] >= least && at < ROW_CHUNK;
                 at += ROW_LANES)
                if (x[at] >= least && x[at] > -INFINITY)
                    insert_top(out, n, x[at], c * ROW_CHUNK + at);
    }
}

static void tell(struct reading *r, float x, int32_t n_top, struct sampler_logprobs *out)
{
    out->logprob = logprob_of(r, x);
    find_top(r, n_top, out);
    for (int32_t i = 0; i < out->n_top; i++)
        out->top_logprobs[i] = logprob_of(r, out->top_logprobs[i]);
}

/* ---- public ---- */

int32_t sampler_pick(struct sampler *s, float *logits, const struct sampling_params *p,
                     const struct sampler_history *h, uint64_t position, uint32_t n_output,
                     struct sampler_logprobs *out)
{
    struct reading r;
    int32_t id = -1;

    assert(h == NULL || sampler_history_n_output(h) == n_output);
    adjust(s, logits, p, h, n_output);
    read_row(s, logits, is_greedy(p) ? 1 : p->temperature, &r);
    if (r.best > -INFINITY) {
        id = pick(&r, p, position);
        if (out != NULL && p->logprobs)
            tell(&r, logit_of(&r, id), p->n_top_logprobs, out);
    }
    restore(s, logits);
    return id;
}

bool sampler_score(struct sampler *s, const float *logits, int32_t token, int32_t n_top,
                   struct sampler_logprobs *out)
{
    struct reading r;

    read_row(s, logits, 1, &r);
    if (!(r.best > -INFINITY))
        return false;
    tell(&r, token >= 0 && token < s->vocab ? logit_of(&r, token) : -INFINITY, n_top, out);
    return true;
}
