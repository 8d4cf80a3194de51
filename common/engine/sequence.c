#include "common/engine/sequence.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

enum status_code sequence_init(struct sequence *s, const int32_t *tokens, uint32_t n,
                               uint32_t n_emitted, uint32_t max_new,
                               const struct sampling_params *sampling, int32_t vocab,
                               struct status *st)
{
    uint32_t left = max_new > n_emitted ? max_new - n_emitted : 1;

    *s = (struct sequence){
        .n_tokens = n,
        .cap_tokens = n + left,
        .n_prompt = n,
        .n_emitted = n_emitted,
        .max_new = max_new,
        .sampling = *sampling,
        .acceptance = SEQ_DRAFTS_MAX,
    };
    s->cap_pages = kv_pages_for(s->cap_tokens);
    s->tokens = malloc(s->cap_tokens * sizeof(*s->tokens));
    s->pages = malloc(s->cap_pages * sizeof(*s->pages));
    if (s->tokens == NULL || s->pages == NULL) {
        sequence_deinit(s);
        return status_set(st, ST_EXHAUSTED, "no memory for a request of %u tokens", s->cap_tokens);
    }
    memcpy(s->tokens, tokens, n * sizeof(*tokens));
    if (sampling->logprobs) {
        s->logprobs = malloc((SEQ_DRAFTS_MAX + 1) * sizeof(*s->logprobs));
        if (s->logprobs == NULL)
            status_set(st, ST_EXHAUSTED, "no memory for log probabilities");
    }
    if ((sampling->logprobs && s->logprobs == NULL) ||
        sampler_history_new(vocab, sampling, s->tokens, n, n_emitted, n_emitted + left, &s->history,
                            st) != ST_OK) {
        sequence_deinit(s);
        return st->code;
    }
    return status_ok(st);
}

void sequence_deinit(struct sequence *s)
{
    assert(s->state == SEQ_OUT && !s->has_units);
    free(s->tokens);
    free(s->pages);
    free(s->logprobs);
    sampler_history_free(s->history);
    s->tokens = NULL;
    s->pages = NULL;
    s->logprobs = NULL;
    s->history = NULL;
}

static bool is_stop(const struct sequence *s, int32_t token)
{
    const struct sampling_params *p = &s->sampling;

    if (token == p->eos && !s->ignore_eos)
        return true;
    for (uint32_t i = 0; i < p->n_stop_ids; i++)
        if (p->stop_ids[i] == token)
            return true;
    return false;
}

void sequence_append(struct sequence *s, int32_t token, int64_t context_length)
{
    uint32_t n_output;

    assert(s->n_tokens < s->cap_tokens);
    s->tokens[s->n_tokens++] = token;
    sampler_history_push(s->history, token);
    n_output = sequence_n_output(s);
    if (n_output >= s->sampling.min_new && is_stop(s, token))
        s->finish = SEQ_STOP;
    else if (n_output >= s->max_new || s->n_tokens >= context_length)
        s->finish = SEQ_LENGTH;
    else
        s->finish = SEQ_GOES_ON;
}
