#include <assert.h>
#include <math.h>
#include <stdlib.h>

#include "common/base/clock.h"
#include "common/engine/engine_internal.h"

/* ---- who takes part ---- */

/* Drafts that s can carry now: as far as its pages and the context go. */
static uint32_t drafts_that_fit(struct engine *e, struct sequence *s)
{
    uint32_t context = (uint32_t)e->opt.context_length - s->n_tokens, n = s->n_drafts;

    n = n < context ? n : context;
    while (n > 0 && s->n_pages < kv_pages_for(s->n_tokens + n))
        if (s->n_pages == s->cap_pages || !units_grow(e, s))
            n--; /* a guess is not worth a retraction */
    return n;
}

/* Room for the KV of s's last token; retracts the youngest until there is. False: s itself went. */
static bool grow(struct engine *e, struct sequence *s)
{
    while (s->n_pages < kv_pages_for(s->n_tokens)) {
        if (units_grow(e, s))
            continue;
        engine_retract_youngest(e);
        if (s->state != SEQ_RUNNING)
            return false;
    }
    return true;
}

/* Rows and logits of the batch so far. */
struct filled {
    int rows, logit_rows;
    bool scores; /* one sequence a step has its prompt scored: each token takes a row of logits */
};

static void add_part(struct engine *e, struct sequence *s, uint32_t n_tokens, uint32_t n_drafts,
                     struct filled *f)
{
    bool draws = s->n_computed + n_tokens == s->n_tokens;
    bool scores = !f->scores && batch_scores(s) && s->n_computed + 1 < s->n_prompt;
    struct part *p = &e->parts[e->n_parts];
    struct model_span *span = &e->spans[e->n_parts++];

    *p = (struct part){s, n_tokens + n_drafts, n_drafts, f->rows, -1, -1, false};
    if (scores)
        p->score_row = f->logit_rows;
    if (draws)
        p->logit_row = f->logit_rows + (scores ? (int)n_tokens - 1 : 0);
    *span = (struct model_span){
        .tokens = s->tokens + s->n_computed, /* drafts lie behind the last token */
        .n_tokens = (int)p->n_rows,
        .start = s->n_computed,
        .slot = s->slot,
        .pages = s->pages,
        .logits = scores || (draws && n_drafts > 0) ? MODEL_LOGITS_ALL
                  : draws                           ? MODEL_LOGITS_LAST
                                                    : MODEL_LOGITS_NONE,
    };
    f->scores |= scores;
    f->rows += (int)p->n_rows;
    f->logit_rows += scores ? (int)n_tokens : draws ? (int)n_drafts + 1 : 0;
}

/* ---- how prompts share a chunk ---- */

static uint32_t min_u32(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

/* Prompts that compute, in order of arrival. One whose tokens are each to be scored takes few of
 * them, and one such prompt in a step is enough. */
static int find_prompts(struct engine *e)
{
    bool scores = false;
    int n = 0;

    for (struct sequence *s = e->active.first; s != NULL; s = s->next) {
        uint32_t left = s->n_tokens - s->n_computed;

        if (s->state != SEQ_RUNNING || left <= 1)
            continue;
        e->shares[n] = (struct share){.seq = s, .left = left, .most = left};
        if (batch_scores(s)) {
            e->shares[n].most = scores ? 0 : min_u32(left, SCORE_ROWS);
            scores = true;
        }
        n++;
    }
    return n;
}

/* @return what it took: up to where a state is to be kept */
static uint32_t give(const struct engine *e, struct share *h, uint32_t room)
{
    uint32_t n;

    if (h->n == 0 && h->most > 0 && room > 0)
        h->most = min_u32(h->most, units_next_cut(e, h->seq) - h->seq->n_computed);
    n = min_u32(h->most - h->n, room);
    h->n += n;
    return n;
}

/* What prompts with no more than `level` tokens left want together. */
static uint64_t demand(const struct share *h, int n, uint32_t level)
{
    uint64_t sum = 0;

    for (int i = 0; i < n; i++)
        sum += h[i].left <= level ? h[i].most : 0;
    return sum;
}

/* Gives `room` tokens to those with less than `limit` left: to the shortest first, and among equal
 * ones to the oldest. @return what nobody took */
static uint32_t give_to_short(struct engine *e, int n, uint32_t limit, uint32_t room)
{
    uint32_t low = 0, high = limit; /* all up to low can have what they want, up to high not */
    struct share *h = e->shares;

    while (low + 1 < high) {
        uint32_t level = low + (high - low) / 2;

        if (demand(h, n, level) <= room)
            low = level;
        else
            high = level;
    }
    for (uint32_t level = low; level <= low + 1 && level < limit; level++)
        for (int i = 0; i < n; i++)
            if (h[i].left <= level)
                room -= give(e, &h[i], room);
    return room;
}

/*
 * What --chunked-prefill-size allows goes to the oldest prompts. But half of it is for those that
 * have less than half to go of what the first has that wants more than the other half: a line does
 * not wait for a book. With half of the chunk such a prompt is done before the long one in any
 * case, and in sum the two wait less than one after the other would: 3 short + long against short +
 * 2 long. For longer ones that is not so. The oldest has half of every step, so nobody waits for
 * ever.
 */
static void share_chunk(struct engine *e, int n)
{
    uint32_t room = (uint32_t)e->opt.chunk_tokens, half = room / 2;
    bool shared = false;

    for (int i = 0; i < n && room > 0; i++) {
        struct share *h = &e->shares[i];

        half = min_u32(half, room);
        if (!shared && h->most > room - half) {
            room += give_to_short(e, n, h->left / 2, half) - half;
            shared = true;
        }
        room -= give(e, h, room);
    }
}

/* Every running sequence that has its prompt takes one row and its drafts; prompts share a chunk.
 */
static void build(struct engine *e)
{
    bool drafts = draft_wanted(e);
    struct filled f = {0};
    int n_prompts;
    struct sequence *next;

    e->n_parts = 0;
    for (struct sequence *s = e->active.first; s != NULL; s = next) {
        /* A retraction never hits one of the parts: it takes the youngest. */
        next = s->next;
        if (s->state == SEQ_RUNNING && s->n_computed + 1 == s->n_tokens && grow(e, s)) {
            add_part(e, s, 1, drafts ? drafts_that_fit(e, s) : 0, &f);
            next = s->next; /* growing may have retracted what came next */
        }
    }
    n_prompts = find_prompts(e);
    share_chunk(e, n_prompts);
    for (int i = 0; i < n_prompts; i++)
        if (e->shares[i].n > 0)
            add_part(e, e->shares[i].seq, e->shares[i].n, 0, &f);
    e->stats.batch_seqs = (uint32_t)e->n_parts;
    e->stats.batch_tokens = (uint32_t)f.rows;
}

/* ---- draws ---- */

int32_t batch_draw(struct engine *e, struct sequence *s, const float *logits,
                   struct sampler_logprobs *logprobs)
{
    /* The sampler adjusts the row in place and puts it back. */
    return sampler_pick(e->sampler, (float *)logits, &s->sampling, s->history, s->n_tokens,
                        sequence_n_output(s), logprobs);
}

/* ---- draws on the device ---- */

enum { NOT_DRAWN = -2 };

static bool device_draws(const struct engine *e)
{
    return model_samples(e->model) && e->probe.row == NULL; /* a probe looks at the logits */
}

const float **batch_logits_at(const struct engine *e, const float **logits)
{
    return device_draws(e) ? NULL : logits;
}

bool batch_ask(struct engine *e, const struct sequence *s, int row, uint32_t ahead)
{
    const struct sampling_params *p = &s->sampling;

    if (!device_draws(e))
        return false;
    e->drawn[row] = NOT_DRAWN;
    if (s->history != NULL || p->n_bias > 0 || p->logprobs || sequence_n_output(s) < p->min_new)
        return false;
    e->draws[e->n_draws++] = (struct kernel_draw){.row = row,
                                                  .top_k = p->top_k,
                                                  .seed = p->seed,
                                                  .position = s->n_tokens + (uint64_t)ahead,
                                                  .temperature = p->temperature,
                                                  .top_p = p->top_p,
                                                  .min_p = p->min_p};
    return true;
}

enum status_code batch_ask_end(struct engine *e, bool need_logits, const float **logits,
                               struct status *st)
{
    int n = e->n_draws;

    e->n_draws = 0;
    status_ok(st);
    if (!device_draws(e))
        return st->code; /* they are there */
    *logits = NULL;
    if (n > 0 && model_sample(e->model, e->draws, n, e->ids, st) != ST_OK)
        return st->code;
    for (int i = 0; i < n; i++)
        e->drawn[e->draws[i].row] = e->ids[i];
    return need_logits ? model_logits(e->model, logits, st) : st->code;
}

int32_t batch_take(struct engine *e, struct sequence *s, const float *logits, int row,
                   struct sampler_logprobs *logprobs)
{
    if (device_draws(e) && e->drawn[row] != NOT_DRAWN)
        return e->drawn[row];
    return batch_draw(e, s, logits + (size_t)row * (size_t)e->vocab, logprobs);
}

/* What the step's draws need of the logits, and what the device draws of them. */
static enum status_code ask_all(struct engine *e, const float **logits, struct status *st)
{
    bool need = false;

    for (int i = 0; i < e->n_parts; i++) {
        const struct part *p = &e->parts[i];

        need |= p->score_row >= 0;
        for (uint32_t j = 0; p->logit_row >= 0 && j <= p->n_drafts; j++)
            need |= !batch_ask(e, p->seq, p->logit_row + (int)j, j);
    }
    return batch_ask_end(e, need, logits, st);
}

/* Draws while the drafts prove right: each row's logits hold as long as the tokens before it do.
 * False: there was nothing to draw from. */
static bool draw_part(struct engine *e, const struct part *p, const float *logits)
{
    struct sequence *s = p->seq;
    uint32_t accepted = 0;
    int row = p->logit_row;
    bool right;

    do {
        int32_t token =
            batch_take(e, s, logits, row, s->logprobs != NULL ? &s->logprobs[s->n_new] : NULL);

        if (token < 0)
            return false;
        if (e->probe.row != NULL)
            e->probe.row(e->probe.arg, s, logits + (size_t)row * (size_t)e->vocab);
        right = accepted < p->n_drafts && s->tokens[s->n_tokens] == token;
        accepted += right;
        sequence_append(s, token, e->opt.context_length);
        s->n_new++;
        row++;
    } while (right && s->finish == SEQ_GOES_ON);
    draft_settle(e, s, p->n_drafts, accepted);
    return true;
}

/* How probable the prompt's own tokens were, one row after the other. */
static void score_part(struct engine *e, const struct part *p, const float *logits)
{
    struct sequence *s = p->seq;

    for (uint32_t i = 0; i < p->n_rows; i++) {
        const float *row = logits + (size_t)(p->score_row + (int)i) * (size_t)e->vocab;
        uint32_t next = s->n_computed + i + 1;
        struct sampler_logprobs one = {0};

        if (next >= s->n_prompt || next <= s->n_scored)
            continue; /* told before a retraction */
        if (!sampler_score(e->sampler, row, s->tokens[next], s->sampling.n_top_logprobs, &one))
            one = (struct sampler_logprobs){.logprob = -INFINITY};
        s->n_scored = next;
        e->events.scored(e->events.arg, s, &one);
    }
}

static void settle_part(struct engine *e, struct part *p, const float *logits)
{
    struct sequence *s = p->seq;
    uint32_t before = s->n_computed;

    s->n_new = 0;
    if (p->score_row >= 0)
        score_part(e, p, logits);
    if (p->logit_row < 0) {
        s->n_computed += p->n_rows;
    } else if (draw_part(e, p, logits)) {
        s->n_computed = s->n_tokens - 1; /* rows of rejected drafts are as if they never were */
    } else {
        p->failed = true;
        s->n_new = s->n_drafts = 0;
        s->n_computed = 0; /* what led here is not worth keeping */
        return;
    }
    units_computed(e, s, before);
}

static void fail_all(struct engine *e, const struct status *error)
{
    for (int i = 0; i < e->n_parts; i++) {
        e->parts[i].seq->n_computed = 0; /* whatever the device did, nothing of it is kept */
        e->events.failed(e->events.arg, e->parts[i].seq, error);
    }
}

static void report(struct engine *e)
{
    struct status nan;

    status_set(&nan, ST_INTERNAL,
               "the model gave no logit that is a number: the weights are "
               "damaged or the device is faulty");
    for (int i = 0; i < e->n_parts; i++) {
        struct sequence *s = e->parts[i].seq;

        if (e->parts[i].failed)
            e->events.failed(e->events.arg, s, &nan);
        else
            e->events.stepped(e->events.arg, s);
    }
}

bool engine_step(struct engine *e)
{
    uint64_t t0 = clock_now_us(), t1, t2, t3;
    const float *logits;
    struct status st;

    build(e);
    if (e->n_parts == 0)
        return false;
    t1 = clock_now_us();
    if (model_forward(e->model, &e->kv, e->spans, e->n_parts, batch_logits_at(e, &logits), &st) !=
            ST_OK ||
        ask_all(e, &logits, &st) != ST_OK) {
        fail_all(e, &st);
        return true;
    }
    t2 = clock_now_us();
    for (int i = 0; i < e->n_parts; i++)
        settle_part(e, &e->parts[i], logits);
    t3 = clock_now_us();
    if (draft_make(e, &st) != ST_OK) {
        fail_all(e, &st);
        return true;
    }
    e->stats.steps++;
    e->stats.schedule_us = t1 - t0;
    e->stats.forward_us = t2 - t1;
    e->stats.sample_us = t3 - t2;
    e->stats.draft_us = clock_now_us() - t3;
    report(e);
    return true;
}

/* ---- start and end ---- */

enum status_code batch_init(struct engine *e, struct status *st)
{
    engine_batch_bounds(&e->opt, &e->max_rows, &e->max_seqs, &e->max_logit_rows);
    e->parts = calloc((size_t)e->max_seqs, sizeof(*e->parts));
    e->spans = calloc((size_t)e->max_seqs, sizeof(*e->spans));
    e->next_tokens = calloc((size_t)e->max_rows, sizeof(*e->next_tokens));
    e->rows = calloc((size_t)e->max_seqs, sizeof(*e->rows));
    e->drafting = calloc((size_t)e->max_seqs, sizeof(*e->drafting));
    e->shares = calloc((size_t)e->max_seqs, sizeof(*e->shares));
    e->draws = calloc((size_t)e->max_logit_rows, sizeof(*e->draws));
    e->ids = calloc((size_t)e->max_logit_rows, sizeof(*e->ids));
    e->drawn = calloc((size_t)e->max_logit_rows, sizeof(*e->drawn));
    if (e->parts == NULL || e->spans == NULL || e->next_tokens == NULL || e->rows == NULL ||
        e->drafting == NULL || e->shares == NULL || e->draws == NULL || e->ids == NULL ||
        e->drawn == NULL)
        return status_set(st, ST_EXHAUSTED, "no memory for a batch of %d sequences", e->max_seqs);
    return sampler_new(e->vocab, CPU_ISA_AVX512, &e->sampler, st);
}

void batch_deinit(struct engine *e)
{
    sampler_free(e->sampler);
    free(e->parts);
    free(e->spans);
    free(e->next_tokens);
    free(e->rows);
    free(e->drafting);
    free(e->shares);
    free(e->draws);
    free(e->ids);
    free(e->drawn);
}
