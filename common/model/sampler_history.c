#include "common/model/sampler_history.h"

#include <assert.h>
#include <stdlib.h>

struct sampler_history {
    int32_t vocab;
    struct sampler_seen *seen; /* [n_seen] of [cap_seen] */
    uint32_t n_seen, cap_seen;
    uint32_t *slots; /* [slot_mask + 1]: index of seen + 1, 0: empty; at most half full */
    uint32_t slot_mask;
    int32_t *output; /* [n_output] of [cap_output] */
    uint32_t n_output, cap_output;
};

static bool has_repetition(const struct sampling_params *p)
{
    return p->repetition_penalty != 0 && p->repetition_penalty != 1;
}

bool sampler_history_needed(const struct sampling_params *p)
{
    return has_repetition(p) || p->presence_penalty != 0 || p->frequency_penalty != 0;
}

static bool in_vocab(const struct sampler_history *h, int32_t id)
{
    return id >= 0 && id < h->vocab;
}

/* The entry of a token, made where there is none. */
static struct sampler_seen *find(struct sampler_history *h, int32_t id)
{
    uint32_t i = (uint32_t)id * 0x9E3779B9u >> 7 & h->slot_mask;

    for (; h->slots[i] != 0; i = (i + 1) & h->slot_mask)
        if (h->seen[h->slots[i] - 1].id == id)
            return &h->seen[h->slots[i] - 1];
    assert(h->n_seen < h->cap_seen);
    h->seen[h->n_seen] = (struct sampler_seen){.id = id};
    h->slots[i] = ++h->n_seen;
    return &h->seen[h->n_seen - 1];
}

static enum status_code allocate(struct sampler_history *h, uint64_t n_distinct,
                                 uint32_t max_output, struct status *st)
{
    uint64_t n_slots = 16;

    if (n_distinct > (uint64_t)h->vocab)
        n_distinct = (uint64_t)h->vocab;
    while (n_slots < 2 * n_distinct)
        n_slots *= 2;
    h->cap_seen = (uint32_t)n_distinct;
    h->slot_mask = (uint32_t)n_slots - 1;
    h->cap_output = max_output;
    h->seen = malloc((n_distinct + 1) * sizeof(*h->seen));
    h->slots = calloc(n_slots, sizeof(*h->slots));
    h->output = malloc(((size_t)max_output + 1) * sizeof(*h->output));
    if (h->seen == NULL || h->slots == NULL || h->output == NULL)
        return status_set(st, ST_EXHAUSTED, "no memory to count %u tokens for penalties",
                          max_output);
    return status_ok(st);
}

static enum status_code count(struct sampler_history *h, const struct sampling_params *p,
                              const int32_t *tokens, uint32_t n_tokens, uint32_t n_output,
                              struct status *st)
{
    for (uint32_t i = 0; i < n_tokens; i++)
        if (!in_vocab(h, tokens[i]))
            return status_set(st, ST_INVALID, "token %u is %d, the vocabulary has %d", i, tokens[i],
                              h->vocab);
    for (uint32_t i = 0; i < n_tokens - n_output && has_repetition(p); i++)
        find(h, tokens[i])->in_prompt = true;
    for (uint32_t i = n_tokens - n_output; i < n_tokens; i++)
        sampler_history_push(h, tokens[i]);
    return status_ok(st);
}

enum status_code sampler_history_new(int32_t vocab, const struct sampling_params *p,
                                     const int32_t *tokens, uint32_t n_tokens, uint32_t n_output,
                                     uint32_t max_output, struct sampler_history **out,
                                     struct status *st)
{
    struct sampler_history *h = NULL;

    *out = NULL;
    if (!sampler_history_needed(p))
        return status_ok(st);
    if (n_output > n_tokens || n_output > max_output)
        return status_set(st, ST_INVALID, "%u output tokens of %u, %u at most", n_output, n_tokens,
                          max_output);
    h = calloc(1, sizeof(*h));
    if (h == NULL)
        return status_set(st, ST_EXHAUSTED, "no memory to count tokens for penalties");
    h->vocab = vocab;
    if (allocate(h, (uint64_t)max_output + (has_repetition(p) ? n_tokens - n_output : 0),
                 max_output, st) != ST_OK ||
        count(h, p, tokens, n_tokens, n_output, st) != ST_OK)
        goto done;
    *out = h;
    h = NULL;
done:
    sampler_history_free(h);
    return st->code;
}

void sampler_history_free(struct sampler_history *h)
{
    if (h == NULL)
        return;
    free(h->seen);
    free(h->slots);
    free(h->output);
    free(h);
}

void sampler_history_push(struct sampler_history *h, int32_t token)
{
    if (h == NULL)
        return;
    assert(h->n_output < h->cap_output);
    if (in_vocab(h, token))
        find(h, token)->n_output++;
    h->output[h->n_output++] = token;
}

/* Forgets the newest entry. Nothing was put into the table after it, so no search passes its place.
 */
static void drop_newest(struct sampler_history *h)
{
    uint32_t i = (uint32_t)h->seen[h->n_seen - 1].id * 0x9E3779B9u >> 7 & h->slot_mask;

    while (h->slots[i] != h->n_seen)
        i = (i + 1) & h->slot_mask;
    h->slots[i] = 0;
    h->n_seen--;
}

void sampler_history_truncate(struct sampler_history *h, uint32_t n_output)
{
    while (h != NULL && h->n_output > n_output) {
        int32_t token = h->output[--h->n_output];
        struct sampler_seen *seen = in_vocab(h, token) ? find(h, token) : NULL;

        if (seen == NULL || --seen->n_output > 0 || seen->in_prompt)
            continue;
        assert(seen == &h->seen[h->n_seen - 1]); /* last in, first out */
        drop_newest(h);
    }
}

uint32_t sampler_history_n_output(const struct sampler_history *h)
{
    return h == NULL ? 0 : h->n_output;
}

const struct sampler_seen *sampler_history_borrow(const struct sampler_history *h, uint32_t *n)
{
    *n = h == NULL ? 0 : h->n_seen;
    return h == NULL ? NULL : h->seen;
}
