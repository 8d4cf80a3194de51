#include <math.h>

#include "common/engine/engine_internal.h"

/*
 * A sequence drafts as many tokens as it lately had accepted, plus one. When even the first guess
 * hardly ever holds it rests, and tries again later: text changes.
 */
static const float WEIGHT = 0.1f; /* of the newest step in the running mean */
static const float HARDLY = 0.15f;
enum { REST_TOKENS = 64 };

bool draft_wanted(const struct engine *e)
{
    return e->opt.draft_tokens > 0 && e->n_running <= (uint32_t)e->opt.draft_max_batch;
}

void draft_settle(struct engine *e, struct sequence *s, uint32_t n_made, uint32_t n_accepted)
{
    uint32_t most = (uint32_t)e->opt.draft_tokens, len;

    s->n_drafts = 0;
    for (uint32_t i = 0; i < n_made; i++) {
        e->stats.drafted[i]++;
        e->stats.accepted[i] += i < n_accepted;
    }
    if (s->draft_len == 0) { /* resting */
        s->draft_rest -= s->draft_rest < s->n_new ? s->draft_rest : s->n_new;
        if (s->draft_rest == 0) {
            s->draft_len = 1;
            s->acceptance = 2 * HARDLY;
        }
        return;
    }
    if (n_made == 0)
        return;
    s->acceptance += WEIGHT * ((float)n_accepted - s->acceptance);
    len = (uint32_t)lroundf(s->acceptance) + 1;
    s->draft_len = len < most ? len : most;
    if (s->acceptance < HARDLY) {
        s->draft_len = 0;
        s->draft_rest = REST_TOKENS;
    }
}

/* The token after each row of the batch, as far as it is known by now. */
static void fill_next_tokens(struct engine *e)
{
    for (int i = 0; i < e->n_parts; i++) {
        const struct part *p = &e->parts[i];
        const struct sequence *s = p->seq;
        uint32_t start = (uint32_t)e->spans[i].start;

        for (uint32_t r = 0; r < p->n_rows; r++) {
            uint32_t next = start + r + 1;

            /* After a rejected draft anything will do: its row is never looked at. */
            e->next_tokens[p->first_row + (int)r] = next < s->n_tokens ? s->tokens[next] : 0;
        }
    }
}

/* Sequences that draft, and the row of each that its last known token follows. */
static int choose(struct engine *e)
{
    int n = 0;

    if (!draft_wanted(e))
        return 0;
    for (int i = 0; i < e->n_parts; i++) {
        struct sequence *s = e->parts[i].seq;

        if (s->n_new == 0 || s->finish != SEQ_GOES_ON || s->draft_len == 0)
            continue;
        e->drafting[n] = s;
        e->rows[n++] =
            e->parts[i].first_row + (int)(s->n_computed - 1 - (uint32_t)e->spans[i].start);
    }
    return n;
}

/* Guesses share the noise of the positions that they are made for, so that a sampled token is
 * guessed as well as a greedy one. */
static void take_guess(struct engine *e, struct sequence *s, const float *logits, int row)
{
    uint32_t place = s->n_drafts;
    int32_t draft;

    s->n_tokens += place; /* drawn as if the guesses before it were right */
    draft = batch_take(e, s, logits, row, NULL);
    if (e->probe.guess != NULL)
        draft = e->probe.guess(e->probe.arg, s, place, draft);
    s->n_tokens -= place;
    if (draft < 0) { /* the MTP block gave no numbers; the main model goes on without guesses */
        s->draft_len = s->n_drafts;
        return;
    }
    s->tokens[s->n_tokens + s->n_drafts++] = draft;
    sampler_history_push(s->history, draft);
}

/* The guesses of all that draft, from the rows of the last MTP step. */
static enum status_code take_guesses(struct engine *e, int n, const float *logits,
                                     struct status *st)
{
    bool need = false;

    for (int i = 0; i < n; i++)
        need |= !batch_ask(e, e->drafting[i], i, e->drafting[i]->n_drafts);
    if (batch_ask_end(e, need, &logits, st) != ST_OK)
        return st->code;
    for (int i = 0; i < n; i++)
        take_guess(e, e->drafting[i], logits, i);
    return st->code;
}

/* Guesses count in the penalties of the guesses after them, and then no more. */
static void forget_guesses(struct engine *e)
{
    for (int i = 0; i < e->n_parts; i++)
        sampler_history_truncate(e->parts[i].seq->history, sequence_n_output(e->parts[i].seq));
}

/* Sequences that guess on after `made` drafts, as spans of one token. Their rows of the last MTP
 * batch move to the front of e->rows. */
static int go_on(struct engine *e, int n, uint32_t made)
{
    int m = 0;

    for (int i = 0; i < n; i++) {
        struct sequence *s = e->drafting[i];
        uint32_t start = s->n_computed - 1 + made;

        if (s->draft_len <= made || s->n_drafts < made || s->n_tokens + made >= s->cap_tokens ||
            start + 1 > s->n_pages * KV_PAGE_TOKENS || start + 2 > e->opt.context_length)
            continue;
        e->spans[m] = (struct model_span){
            .tokens = &s->tokens[s->n_tokens + made - 1],
            .n_tokens = 1,
            .start = start,
            .slot = s->slot,
            .pages = s->pages,
            .logits = MODEL_LOGITS_LAST,
        };
        e->drafting[m] = s;
        e->rows[m++] = made == 1 ? e->rows[i] : i;
    }
    return m;
}

enum status_code draft_make(struct engine *e, struct status *st)
{
    const float *logits = NULL, **at = batch_logits_at(e, &logits);
    int n;

    if (e->opt.draft_tokens == 0 && !e->opt.keep_mtp)
        return status_ok(st);
    fill_next_tokens(e);
    n = choose(e);
    if (model_mtp(e->model, &e->kv, e->next_tokens, e->rows, n, at, st) != ST_OK)
        return st->code;
    for (uint32_t made = 1; n > 0; made++) {
        if (take_guesses(e, n, logits, st) != ST_OK)
            return st->code;
        n = go_on(e, n, made);
        if (n > 0 && model_mtp_next(e->model, &e->kv, e->spans, e->rows, n, at, st) != ST_OK)
            return st->code;
    }
    forget_guesses(e);
    return status_ok(st);
}
