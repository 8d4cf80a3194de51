#include "kernels/cuda/sampler.h"
#include "kernels/cuda/device.h"
#include "kernels/sampler_noise.h"

/*
 * Four kernels:
 *   adjust  grid [T]: penalties, then biases, then masks; a barrier between them
 *   maxima  grid [4 chunks][T]: a warp a chunk: maxima of its 16 groups and of itself
 *   parts   grid [8 chunks][T]: a thread a group: its sum of probabilities; rows that ask for it
 *   pick    grid [T]: the filters, the draw and the log probabilities
 * Bound by bytes: 8 vocab a row (maxima, parts); pick reads what may win or rank before the winner.
 * Sums are those of sampler_rows.c: 16 lanes in f32 over a chunk's rows, in double over the chunks,
 * halved.
 */
enum {
    LANES_N = SAMPLE_LANES,
    CHUNK_IDS = SAMPLE_CHUNK,
    PICK_THREADS = 256, /* a thread an id of a chunk */
    TILE_CHUNKS = 128,
    MAXIMA_CHUNKS = CUDA_BLOCK / CUDA_WARP,
    PARTS_CHUNKS = CUDA_BLOCK / LANES_N
};

#define TEMPERATURE_MIN 1e-5f
#define LOG2_E_DOUBLE 0x1.71547652B82FEp0
#define NOTHING (-INFINITY)

CUDA_DEVICE int n_chunks_of(const struct sample_args *a)
{
    return (a->vocab + CHUNK_IDS - 1) / CHUNK_IDS;
}

/* What the kernels leave each other, of row t. */
struct leaves {
    float *logits, *group_max, *part, *before, *chunk_max;
};

CUDA_DEVICE struct leaves leaves_of(const struct sample_args *a, int64_t t)
{
    int64_t n = n_chunks_of(a);
    struct leaves l;

    l.logits = a->logits + t * a->vocab;
    l.group_max = a->work + t * n * (3 * LANES_N + 1);
    l.part = l.group_max + n * LANES_N;
    l.before = l.part + n * LANES_N;
    l.chunk_max = l.before + n * LANES_N;
    return l;
}

CUDA_DEVICE float logit_at(const struct sample_args *a, const struct leaves *l, int id)
{
    return id < a->vocab ? l->logits[id] : NOTHING;
}

CUDA_DEVICE int is_greedy(const struct sample_row *p)
{
    return p->is_given || !(p->temperature >= TEMPERATURE_MIN) || p->top_k == 1;
}

/* ---- adjust ---- */

CUDA_DEVICE void penalise(const struct sample_row *p, struct sample_seen seen, float *logits)
{
    float r = p->repetition_penalty == 0 ? 1 : p->repetition_penalty, x = logits[seen.id];

    if (r != 1)
        x = x < 0 ? x * r : x / r;
    if (seen.n_output > 0)
        x -= p->presence_penalty + p->frequency_penalty * (float)seen.n_output;
    logits[seen.id] = x;
}

CUDA_KERNEL(sample_adjust_kernel, struct sample_args)
{
    const struct sample_row *p = &a.rows[blockIdx.x];
    float *logits = a.logits + (int64_t)blockIdx.x * a.vocab;

    for (uint32_t i = threadIdx.x; i < p->n_seen; i += CUDA_BLOCK)
        penalise(p, a.seen[p->seen + i], logits);
    __syncthreads(); /* penalties before biases */
    for (uint32_t i = threadIdx.x; i < p->n_bias; i += CUDA_BLOCK) {
        const struct sample_bias *list = a.bias + p->bias;
        int32_t id = list[i].id;
        int again = id < 0 || id >= a.vocab;

        for (uint32_t j = 0; j < i && !again; j++)
            again = list[j].id == id;
        for (uint32_t j = i; j < p->n_bias && !again; j++) /* the first of an id adds all of it */
            if (list[j].id == id)
                logits[id] += list[j].x;
    }
    __syncthreads(); /* biases before masks */
    for (uint32_t i = threadIdx.x; i < p->n_masked; i += CUDA_BLOCK)
        if (a.masked[p->masked + i] >= 0 && a.masked[p->masked + i] < a.vocab)
            logits[a.masked[p->masked + i]] = NOTHING;
}

/* ---- maxima, parts ---- */

CUDA_KERNEL(sample_maxima_kernel, struct sample_args)
{
    struct leaves l = leaves_of(&a, (int64_t)blockIdx.y);
    int c = (int)blockIdx.x * MAXIMA_CHUNKS + (int)threadIdx.x / CUDA_WARP, lane = warp_lane();
    float most = NOTHING, other;

    for (int i = lane; i < CHUNK_IDS; i += CUDA_WARP) {
        float x = logit_at(&a, &l, c * CHUNK_IDS + i);

        most = x > most ? x : most; /* a NaN is none */
    }
    other = warp_xor(most, LANES_N);
    most = other > most ? other : most;
    if (c < n_chunks_of(&a) && lane < LANES_N)
        l.group_max[c * LANES_N + lane] = most;
    for (int mask = LANES_N / 2; mask > 0; mask /= 2) {
        other = warp_xor(most, mask);
        most = other > most ? other : most;
    }
    if (c < n_chunks_of(&a) && lane == 0)
        l.chunk_max[c] = most;
}

/* How x becomes a probability relative to the best: see sampler_rows.h. */
struct scale {
    float best, factor;
};

CUDA_DEVICE struct scale scale_of(const struct sample_row *p, float best)
{
    double temperature = is_greedy(p) ? 1.0 : (double)p->temperature;
    struct scale s = {best, (float)(LOG2_E_DOUBLE / temperature)};

    return s;
}

/* 2^((x - best) * factor): sampler_rows.c's probability(), operation by operation; its constants as
 * f32 has them. */
CUDA_DEVICE float probability(float x, struct scale s)
{
    float y = (x - s.best) * s.factor, shifted, f, p;

    y = y > -126.0f ? y : -126.0f;
    shifted = y + 0x1.8p23f;
    f = y - (shifted - 0x1.8p23f);
    p = 0x1.5BBA14p-10f;
    p = p * f + 0x1.3CEA88p-7f;
    p = p * f + 0x1.C6B754p-5f;
    p = p * f + 0x1.EBF9BCp-3f;
    p = p * f + 0x1.62E428p-1f;
    p = p * f + 1.0f;
    return dev_float(dev_bits(p) + (dev_bits(shifted) << 23));
}

/* The largest of chunk_max, by all threads. scratch: shared, [warps]. */
CUDA_DEVICE float best_of(const float *chunk_max, int n, float *scratch)
{
    float best = NOTHING;

    for (int c = (int)threadIdx.x; c < n; c += (int)blockDim.x)
        best = fmaxf(best, chunk_max[c]);
    best = warp_max(best, CUDA_WARP); /* there is no NaN */
    __syncthreads();
    if (warp_lane() == 0)
        scratch[threadIdx.x / CUDA_WARP] = best;
    __syncthreads();
    for (int w = 0; w < (int)blockDim.x / CUDA_WARP; w++)
        best = fmaxf(best, scratch[w]);
    return best;
}

CUDA_DEVICE int needs_total(const struct sample_row *p)
{
    return p->n_top >= 0 || (!is_greedy(p) && p->top_p < 1);
}

CUDA_KERNEL(sample_parts_kernel, struct sample_args)
{
    __shared__ float scratch[CUDA_BLOCK / CUDA_WARP];
    const struct sample_row *p = &a.rows[blockIdx.y];
    struct leaves l = leaves_of(&a, (int64_t)blockIdx.y);
    int c = (int)blockIdx.x * PARTS_CHUNKS + (int)threadIdx.x / LANES_N;
    int lane = (int)threadIdx.x % LANES_N;
    struct scale scale;
    float sum = 0;

    if (!needs_total(p))
        return; /* the whole block */
    scale = scale_of(p, best_of(l.chunk_max, n_chunks_of(&a), scratch));
    if (c >= n_chunks_of(&a))
        return;
    for (int i = lane; i < CHUNK_IDS; i += LANES_N)
        sum += probability(logit_at(&a, &l, c * CHUNK_IDS + i), scale);
    l.part[c * LANES_N + lane] = sum;
}

/* ---- pick ---- */

/* A place in the ranking: what comes before it has a larger logit, or the same and a lower id. */
struct rank {
    float x;
    int32_t id;
};

CUDA_DEVICE int ranks_before(float x, int32_t id, struct rank r)
{
    return x > r.x || (x == r.x && id < r.id);
}

struct winner {
    double score;
    int32_t id;
};

/* Shared memory of pick, besides chunk_max [chunks]. */
struct pick_shared {
    double lane[LANES_N], score[PICK_THREADS];
    float tile[TILE_CHUNKS * LANES_N];
    int32_t id[PICK_THREADS];
    float x[PICK_THREADS], scratch[PICK_THREADS / CUDA_WARP], bound;
    uint32_t count;
};

struct reading {
    const struct sample_args *a;
    const struct sample_row *p;
    struct leaves l;
    const float *chunk_max; /* shared */
    struct pick_shared *s;
    int n_chunks;
    struct scale scale;
    double temperature, total;
};

CUDA_DEVICE float logit_of(const struct reading *r, int id)
{
    return logit_at(r->a, &r->l, id);
}

/* The lowest of what all threads bring. */
CUDA_DEVICE int32_t lowest(struct pick_shared *s, int32_t x)
{
    __syncthreads();
    s->id[threadIdx.x] = x;
    for (int half = PICK_THREADS / 2; half > 0; half /= 2) {
        __syncthreads();
        if ((int)threadIdx.x < half && s->id[threadIdx.x + half] < s->id[threadIdx.x])
            s->id[threadIdx.x] = s->id[threadIdx.x + half];
    }
    __syncthreads();
    return s->id[0];
}

/* Lowest id of the largest logit, which is not -inf. */
CUDA_DEVICE int32_t first_of(const struct reading *r)
{
    int32_t c, id, found = INT32_MAX;

    for (c = (int32_t)threadIdx.x; c < r->n_chunks && found == INT32_MAX; c += PICK_THREADS)
        if (r->chunk_max[c] == r->scale.best)
            found = c;
    c = lowest(r->s, found);
    id = c * CHUNK_IDS + (int32_t)threadIdx.x;
    return lowest(r->s, logit_of(r, id) == r->scale.best ? id : INT32_MAX);
}

/* Sums [chunk][lane] over the chunks that may have what ranks at or before x, in order; the others
 * are zeroes, which change no sum. A tile is fetched at once: one after the other would be a wait
 * each. */
CUDA_DEVICE double sum_parts(const struct reading *r, const float *part, float x)
{
    double *lane = r->s->lane, sum = 0;
    float *tile = r->s->tile;
    int l = (int)threadIdx.x;

    for (int first = 0; first < r->n_chunks; first += TILE_CHUNKS) {
        __syncthreads(); /* the parts are there; tile and lane have been read */
        for (int i = l; i < TILE_CHUNKS * LANES_N; i += PICK_THREADS) {
            int c = first + i / LANES_N;

            tile[i] = c < r->n_chunks && r->chunk_max[c] >= x ? part[first * LANES_N + i] : 0;
        }
        __syncthreads(); /* tile: all threads to the first ones */
        for (int c = 0; l < LANES_N && c < TILE_CHUNKS; c++)
            sum += (double)tile[c * LANES_N + l];
    }
    if (l < LANES_N)
        lane[l] = sum;
    for (int n = LANES_N / 2; n > 0; n /= 2) {
        __syncthreads();
        if (l < n)
            lane[l] += lane[l + n];
    }
    __syncthreads();
    return lane[0];
}

/* Probabilities of what ranks before, and how many these are. */
CUDA_DEVICE double mass_before(const struct reading *r, struct rank rank, uint32_t *n)
{
    __syncthreads();
    if (threadIdx.x == 0)
        r->s->count = 0;
    __syncthreads();
    for (int i = (int)threadIdx.x; i < r->n_chunks * LANES_N; i += PICK_THREADS) {
        int c = i / LANES_N;
        uint32_t found = 0;
        float sum = 0;

        if (!(r->chunk_max[c] >= rank.x))
            continue;
        for (int at = i % LANES_N; at < CHUNK_IDS; at += LANES_N) {
            float x = logit_of(r, c * CHUNK_IDS + at);

            if (ranks_before(x, c * CHUNK_IDS + at, rank)) {
                sum += probability(x, r->scale);
                found++;
            }
        }
        r->l.before[i] = sum;
        if (found > 0)
            dev_add(&r->s->count, found);
    }
    __syncthreads(); /* count: all threads to all */
    *n = r->s->count;
    return sum_parts(r, r->l.before, rank.x);
}

/* A logit that the k best reach at least: the k-th largest of the chunks' maxima. */
CUDA_DEVICE float bound_of_best(const struct reading *r, int32_t k)
{
    float bound = NOTHING;

    __syncthreads();
    if (threadIdx.x == 0)
        r->s->bound = NOTHING;
    __syncthreads();
    for (int c = (int)threadIdx.x; c < r->n_chunks && k <= r->n_chunks; c += PICK_THREADS) {
        int before = 0;

        for (int i = 0; i < r->n_chunks; i++)
            before +=
                r->chunk_max[i] > r->chunk_max[c] || (r->chunk_max[i] == r->chunk_max[c] && i < c);
        if (before == k - 1)
            r->s->bound = r->chunk_max[c]; /* one thread */
    }
    __syncthreads();
    bound = r->s->bound;
    return bound;
}

/* What top_k and top_p leave is a beginning of the ranking: all before `end`. */
struct filters {
    int32_t top_k; /* 0: off */
    double top_p;
    struct rank end;
};

CUDA_DEVICE struct filters filters_of(const struct reading *r)
{
    struct filters f = {0, (double)r->p->top_p, {NOTHING, INT32_MAX}};

    if (r->p->top_k > 0 && r->p->top_k < r->a->vocab) {
        f.top_k = r->p->top_k;
        f.end.x = bound_of_best(r, f.top_k);
    }
    if (r->p->min_p > 0) {
        double log_p = r->p->min_p < 1 ? noise_log((double)r->p->min_p) : 0;
        double x = (double)r->scale.best + r->temperature * log_p;
        float least = (float)x;

        if ((double)least < x)
            least = nextafterf(least, INFINITY);
        f.end.x = least > f.end.x ? least : f.end.x;
    }
    return f;
}

/* z + noise for every member of a group that the filters leave and that can win. */
CUDA_DEVICE void try_group(const struct reading *r, const struct filters *f,
                           const struct noise *noise, int group, struct winner *w)
{
    struct noise_group g = noise_group_of(noise, (uint32_t)group);
    int first = group / LANES_N * CHUNK_IDS + group % LANES_N;
    double reach = -noise_log(g.least);

    for (int row = 0; row < NOISE_GROUP; row++) {
        int id = first + row * LANES_N;
        float x = logit_of(r, id);
        double z = ((double)x - (double)r->scale.best) / r->temperature, score = z + reach;

        if (!ranks_before(x, id, f->end) || !(score >= w->score))
            continue;
        if (row != g.row)
            score = z - noise_log(noise_member(noise, &g, id));
        if (score > w->score || (score == w->score && id < w->id)) {
            w->score = score;
            w->id = id;
        }
    }
}

/* The best of all threads' winners. */
CUDA_DEVICE struct winner best_winner(struct pick_shared *s, struct winner w)
{
    int i = (int)threadIdx.x;

    __syncthreads();
    s->score[i] = w.score;
    s->id[i] = w.id;
    for (int half = PICK_THREADS / 2; half > 0; half /= 2) {
        __syncthreads();
        if (i < half && (s->score[i + half] > s->score[i] ||
                         (s->score[i + half] == s->score[i] && s->id[i + half] < s->id[i]))) {
            s->score[i] = s->score[i + half];
            s->id[i] = s->id[i + half];
        }
    }
    __syncthreads();
    w.score = s->score[0];
    w.id = s->id[0];
    return w;
}

/* As sampler.c's draw(): groups that provably cannot win are left out; here all of them against
 * the score of the most probable token's group, so that threads need not agree in between. */
CUDA_DEVICE int32_t draw(const struct reading *r, const struct filters *f,
                         const struct noise *noise, int32_t first)
{
    struct winner w = {NOTHING, INT32_MAX};
    float bound;

    if (threadIdx.x == 0)
        try_group(r, f, noise, first / CHUNK_IDS * LANES_N + first % LANES_N, &w);
    w = best_winner(r->s, w);
    bound = 1.01f * NOISE_GROUP * 0x1p24f * expf((float)-w.score);
    for (int g = (int)threadIdx.x; g < r->n_chunks * LANES_N; g += PICK_THREADS) {
        uint32_t word = noise_group_word(noise->keys, (uint32_t)g);
        float most = r->l.group_max[g];

        if (most >= f->end.x && (float)(word >> 8) <= bound * probability(most, r->scale))
            try_group(r, f, noise, g, &w);
    }
    return best_winner(r->s, w).id;
}

/* Whether top_k and top_p keep the token; if not, the filters end before it from now on. */
CUDA_DEVICE int keeps(const struct reading *r, struct filters *f, int32_t id)
{
    struct rank rank = {logit_of(r, id), id};
    uint32_t n;
    double mass;

    if (f->top_k == 0 && f->top_p >= 1)
        return 1;
    mass = mass_before(r, rank, &n);
    if (n == 0 || ((f->top_k == 0 || n < (uint32_t)f->top_k) &&
                   (f->top_p >= 1 || mass < f->top_p * r->total)))
        return 1;
    f->end = rank;
    return 0;
}

CUDA_DEVICE int32_t pick(const struct reading *r)
{
    struct noise noise = noise_of(r->p->seed, r->p->position);
    int32_t first = first_of(r), id;
    struct filters f;

    if (is_greedy(r->p) || isinf(r->scale.best))
        return first;
    f = filters_of(r);
    do
        id = draw(r, &f, &noise, first);
    while (!keeps(r, &f, id));
    return id;
}

/* ---- log probabilities ---- */

CUDA_DEVICE float logprob_of(const struct reading *r, float x)
{
    if (isinf(r->scale.best))
        return x == r->scale.best ? 0 : NOTHING;
    if (!(x > NOTHING))
        return NOTHING;
    return (float)(((double)x - (double)r->scale.best) / r->temperature - noise_log(r->total));
}

/* The first in rank of what all threads bring. */
CUDA_DEVICE struct rank first_rank(struct pick_shared *s, struct rank best)
{
    int i = (int)threadIdx.x;

    __syncthreads();
    s->x[i] = best.x;
    s->id[i] = best.id;
    for (int half = PICK_THREADS / 2; half > 0; half /= 2) {
        struct rank mine;

        __syncthreads();
        if (i >= half)
            continue;
        mine.x = s->x[i];
        mine.id = s->id[i];
        if (ranks_before(s->x[i + half], s->id[i + half], mine)) {
            s->x[i] = s->x[i + half];
            s->id[i] = s->id[i + half];
        }
    }
    __syncthreads();
    best.x = s->x[0];
    best.id = s->id[0];
    return best;
}

/* The first in rank after `last`; id INT32_MAX: none. */
CUDA_DEVICE struct rank next_in_rank(const struct reading *r, struct rank last, float least)
{
    struct rank best = {NOTHING, INT32_MAX};

    for (int g = (int)threadIdx.x; g < r->n_chunks * LANES_N; g += PICK_THREADS) {
        int first = g / LANES_N * CHUNK_IDS + g % LANES_N;

        if (!(r->l.group_max[g] >= least) || r->l.group_max[g] < best.x)
            continue;
        for (int id = first; id < first + CHUNK_IDS; id += LANES_N) {
            float x = logit_of(r, id);

            if (x > NOTHING && (x < last.x || (x == last.x && id > last.id)) &&
                ranks_before(x, id, best)) {
                best.x = x;
                best.id = id;
            }
        }
    }
    return first_rank(r->s, best);
}

/* n passes over what the n best reach: they are few, and most groups are left out. */
CUDA_DEVICE void tell(const struct reading *r, float x, struct sample_logprobs *out)
{
    int32_t n = r->p->n_top < SAMPLE_TOP_MAX ? r->p->n_top : SAMPLE_TOP_MAX, found = 0;
    struct rank last = {INFINITY, -1};
    float least;

    n = n < r->a->vocab ? n : r->a->vocab;
    least = n > 0 ? bound_of_best(r, n) : 0;
    for (; found < n; found++) {
        last = next_in_rank(r, last, least);
        if (last.id == INT32_MAX)
            break;
        if (threadIdx.x == 0) {
            out->top_ids[found] = last.id;
            out->top_logprobs[found] = logprob_of(r, last.x);
        }
    }
    if (threadIdx.x == 0) {
        out->logprob = logprob_of(r, x);
        out->n_top = found;
    }
}

CUDA_KERNEL(sample_pick_kernel, struct sample_args)
{
    CUDA_DYNAMIC(memory);
    __shared__ struct pick_shared s;
    float *chunk_max = (float *)(void *)memory;
    int64_t t = blockIdx.x;
    struct reading r;
    int32_t id = -1;

    r.a = &a;
    r.p = &a.rows[t];
    r.l = leaves_of(&a, t);
    r.chunk_max = chunk_max;
    r.s = &s;
    r.n_chunks = n_chunks_of(&a);
    for (int c = (int)threadIdx.x; c < r.n_chunks; c += PICK_THREADS)
        chunk_max[c] = r.l.chunk_max[c];
    r.scale = scale_of(r.p, best_of(r.l.chunk_max, r.n_chunks, s.scratch));
    r.temperature = is_greedy(r.p) ? 1.0 : (double)r.p->temperature;
    __syncthreads(); /* chunk_max: all threads to all */
    r.total = needs_total(r.p) ? sum_parts(&r, r.l.part, NOTHING) : 0;
    if (r.scale.best > NOTHING) {
        float x = NOTHING;

        id = r.p->is_given ? r.p->given : pick(&r);
        if (id >= 0 && id < a.vocab)
            x = logit_of(&r, id);
        if (r.p->n_top >= 0 && a.told != 0)
            tell(&r, x, &a.told[t]);
    }
    if (threadIdx.x == 0)
        a.ids[t] = id;
}

CUDA_API void cuda_sample(cuda_stream s, struct sample_args args, int T)
{
    int chunks = (args.vocab + CHUNK_IDS - 1) / CHUNK_IDS;

    if (T <= 0)
        return;
    CUDA_LAUNCH(sample_adjust_kernel, struct sample_args, T, 1, CUDA_BLOCK, s, args);
    CUDA_LAUNCH(sample_maxima_kernel, struct sample_args,
                (chunks + MAXIMA_CHUNKS - 1) / MAXIMA_CHUNKS, T, CUDA_BLOCK, s, args);
    CUDA_LAUNCH(sample_parts_kernel, struct sample_args, (chunks + PARTS_CHUNKS - 1) / PARTS_CHUNKS,
                T, CUDA_BLOCK, s, args);
    CUDA_LAUNCH_GRID(sample_pick_kernel, struct sample_args, T, 1, 1, PICK_THREADS,
                     (size_t)chunks * sizeof(float), s, args);
}
