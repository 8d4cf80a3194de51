#include "router/job.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/clock.h"
#include "common/base/hash.h"
#include "common/base/log.h"
#include "router/ids.h"
#include "router/request_note.h"
#include "router/routes.h"

enum { ID_LETTERS = 24 };

static struct router_metrics *metrics_of(const struct job *j)
{
    return j->thread->router->metrics;
}

/* Events of one turn are gathered here and leave together. */
static struct buf *events_of(const struct job *j)
{
    return &j->thread->events;
}

/* ---- life ------------------------------------------------------------------------------------ */

static void choice_deinit(struct job_choice *c)
{
    generation_cancel(c->generation);
    chat_answer_deinit(&c->answer);
    buf_deinit(&c->reasoning);
    buf_deinit(&c->content);
    buf_deinit(&c->logprobs_text);
    token_list_deinit(&c->ids);
    for (size_t i = 0; i < c->n_calls; i++) {
        buf_deinit(&c->calls[i].name);
        buf_deinit(&c->calls[i].arguments);
    }
    free(c->calls);
    if (c->logprobs != NULL)
        token_logprobs_deinit(c->logprobs);
    free(c->logprobs);
    prompt_ids_unref(c->echo);
}

/* Cancels what still runs. The exchange must be over. */
static void job_free(struct job *j)
{
    for (unsigned i = 0; i < j->n_choices; i++)
        choice_deinit(&j->choices[i]);
    chat_sse_deinit(&j->sse);
    buf_deinit(&j->repeated);
    if (j->prev != NULL)
        j->prev->next = j->next;
    else if (j->thread->jobs == j)
        j->thread->jobs = j->next;
    if (j->next != NULL)
        j->next->prev = j->prev;
    free(j);
}

static void note_end(struct job *j);

static void on_gone(void *arg)
{
    struct job *j = arg;

    log_debug("%s: the client has gone", j->request_id);
    metric_add(metrics_of(j)->client_gone, 1);
    note_end(j);
    job_free(j);
}

/* ---- figures --------------------------------------------------------------------------------- */

struct chat_usage job_usage(const struct job *j)
{
    struct chat_usage u = {.prompt_tokens = j->n_prompt, .cached_tokens = j->path.cached_tokens};

    for (unsigned i = 0; i < j->n_choices; i++) {
        u.completion_tokens += j->choices[i].answer.n_completion;
        u.reasoning_tokens += j->choices[i].answer.n_reasoning;
    }
    return u;
}

void job_put_path(const struct job *j, struct buf *out)
{
    uint64_t n = job_usage(j).completion_tokens;

    buf_printf(out, "{\"request_id\":\"%s\",", j->request_id);
    request_path_json(&j->path, out);
    buf_printf(out, ",\"ttft_ms\":%.3f,\"tpot_ms\":%.3f}",
               (double)(j->first_us - j->begun_us) / 1e3,
               n > 1 ? (double)(j->last_us - j->first_us) / 1e3 / (double)(n - 1) : 0.0);
}

/* For the access log and the key's account; while the exchange stands. */
static void note_end(struct job *j)
{
    struct request_note *n = request_note(j->exchange);
    struct chat_usage u = job_usage(j);

    n->prompt_tokens = (uint32_t)u.prompt_tokens;
    n->cached_tokens = (uint32_t)u.cached_tokens;
    n->completion_tokens = (uint32_t)u.completion_tokens;
    n->ttft_us = j->first_us > j->begun_us ? (uint32_t)(j->first_us - j->begun_us) : 0;
    if (j->choices[0].answer.finish != NULL)
        snprintf(n->finish, sizeof(n->finish), "%s", j->choices[0].answer.finish);
    keys_charge(j->thread->router->keys, &n->who, u.completion_tokens);
}

static void count_end(const struct job *j)
{
    struct router_metrics *m = metrics_of(j);
    struct chat_usage u = job_usage(j);
    uint64_t us = clock_now_us() - j->begun_us;

    metric_add(m->prompt_tokens, (double)u.prompt_tokens);
    metric_add(m->cached_tokens, (double)u.cached_tokens);
    metric_add(m->completion_tokens, (double)u.completion_tokens);
    if (u.completion_tokens > j->n_choices)
        metric_observe(m->tpot_s, (double)(j->last_us - j->first_us) / 1e6 * j->n_choices /
                                      (double)(u.completion_tokens - j->n_choices));
    metric_observe(m->e2e_s, (double)us / 1e6);
    log_debug("%s: done: %llu prompt and %llu completion tokens, %.1f ms", j->request_id,
              (unsigned long long)u.prompt_tokens, (unsigned long long)u.completion_tokens,
              (double)us / 1e3);
}

static void count_tokens(struct job *j, size_t n)
{
    struct router_metrics *m = metrics_of(j);
    uint64_t now = clock_now_us();

    if (j->first_us == 0) {
        j->first_us = now;
        metric_observe(m->ttft_s, (double)(now - j->begun_us) / 1e6);
    } else if (n > 0) {
        metric_observe(m->itl_s, (double)(now - j->last_us) / 1e6 / (double)n);
    }
    j->last_us = now;
}

/* ---- to the client --------------------------------------------------------------------------- */

static void start_stream(struct job *j)
{
    j->started = true;
    router_metrics_count_reply(metrics_of(j), 200);
    reply_request_id(j->exchange, j->request_id);
    http_reply_header(j->exchange, "cache-control", "no-cache");
    http_reply_start(j->exchange, 200, "text/event-stream; charset=utf-8");
}

/* Hands the gathered events to the client. @return false when the job is gone: the client reads too
 * slowly */
static bool send_events(struct job *j)
{
    struct buf *out = events_of(j);
    struct status st;

    http_reply_write(j->exchange, out->data, out->len, &st);
    out->len = 0;
    if (st.code == ST_OK)
        return true;
    log_warn("%s: cut off: %s", j->request_id, st.msg);
    metric_add(metrics_of(j)->client_gone, 1);
    note_end(j);
    http_reply_abort(j->exchange);
    job_free(j);
    return false;
}

/* Ends the request with an error: a status while nothing has been sent, else an event. */
static void job_fail(struct job *j, const struct status *why)
{
    log_info("%s: failed: %s", j->request_id, why->msg);
    note_end(j);
    if (!j->started) {
        reply_request_id(j->exchange, j->request_id);
        reply_status(j->thread, j->exchange, why);
    } else {
        metric_add(metrics_of(j)->stream_errors, 1);
        j->format->error(j, status_http(why->code), why->msg, events_of(j));
        if (!send_events(j))
            return;
        http_reply_end(j->exchange);
    }
    job_free(j);
}

static void job_complete(struct job *j)
{
    struct buf body = {0};

    count_end(j);
    note_end(j);
    if (!j->stream) {
        j->format->whole(j, &body);
        reply_request_id(j->exchange, j->request_id);
        reply_json(j->thread, j->exchange, 200, &body);
        buf_deinit(&body);
    } else {
        j->format->end(j, events_of(j));
        if (!send_events(j))
            return;
        http_reply_end(j->exchange);
    }
    job_free(j);
}

/* ---- from the answers ------------------------------------------------------------------------ */

static void keep_call(struct job_choice *c, const struct chat_delta *d)
{
    struct job_call *more = realloc(c->calls, (c->n_calls + 1) * sizeof(*more)), *call;

    if (more == NULL)
        abort();
    c->calls = more;
    call = &c->calls[c->n_calls++];
    *call = (struct job_call){0};
    ids_call(call->id);
    buf_append(&call->name, d->text, d->len);
}

void job_keep_delta(struct job_choice *c, const struct chat_delta *d)
{
    switch (d->kind) {
    case CHAT_REASONING:
        buf_append(&c->reasoning, d->text, d->len);
        break;
    case CHAT_CONTENT:
        buf_append(&c->content, d->text, d->len);
        break;
    case CHAT_CALL:
        keep_call(c, d);
        break;
    case CHAT_ARGUMENTS:
        buf_append(&c->calls[d->call].arguments, d->text, d->len);
        break;
    }
}

static void on_delta(void *arg, const struct chat_delta *d)
{
    struct job_choice *c = arg;

    if (c->job->stream)
        c->job->format->delta(c->job, c, d, events_of(c->job));
    else
        job_keep_delta(c, d);
    if (!c->job->stream && c->job->format->kept != NULL)
        c->job->format->kept(c->job, c, d);
}

/* ---- from the generations -------------------------------------------------------------------- */

static void begin_choice(struct job_choice *c)
{
    struct job *j = c->job;

    c->began = true;
    if (!j->stream)
        return;
    if (!j->started)
        start_stream(j);
    j->format->begin_choice(j, c, events_of(j));
}

static void end_choice(struct job_choice *c)
{
    struct job *j = c->job;

    generation_cancel(c->generation); /* a stop string, or nothing more counts */
    c->generation = NULL;
    j->n_open--;
    if (j->stream)
        j->format->end_choice(j, c, events_of(j));
}

/* Takes the log probabilities of the prompt, from the token on that was asked for. */
static enum status_code add_prompt_logprobs(struct job_choice *c, const Baton__V1__Logprobs *m,
                                            struct status *st)
{
    const struct tokenizer *t = c->job->thread->router->tokenizer;
    const struct prompt_ids *prompt = c->echo;
    size_t top_at = 0, start = c->job->logprob_start > 0 ? (size_t)c->job->logprob_start : 0;

    if (prompt->n > 1 && token_logprobs_check(m, prompt->n - 1, t, st) != ST_OK)
        return st->code;
    if (start == 0)
        token_logprobs_add_first(c->logprobs, prompt->ids[0]);
    for (size_t i = 1; i < prompt->n; i++)
        if (i < start)
            top_at += m->n_top[i - 1];
        else
            token_logprobs_add(c->logprobs, prompt->ids[i], m, i - 1, &top_at);
    c->logprobs->n_prompt = c->logprobs->n;
    return status_ok(st);
}

/* Shows the prompt, once, as the first text of the answer; or only its log probabilities. */
static enum status_code echo_prompt(struct job_choice *c, const Baton__V1__Logprobs *m,
                                    struct status *st)
{
    const struct tokenizer *t = c->job->thread->router->tokenizer;
    struct prompt_ids *prompt = c->echo;
    struct detokenizer d = {0};
    struct buf text = {0};

    status_ok(st);
    if (c->logprobs != NULL && add_prompt_logprobs(c, m, st) != ST_OK)
        return st->code;
    for (size_t i = 0; c->job->echo && i < prompt->n && st->code == ST_OK; i++)
        detokenizer_push(&d, t, prompt->ids[i], &text, st);
    detokenizer_finish(&d, &text);
    if (st->code == ST_OK && c->job->echo)
        on_delta(c, &(struct chat_delta){CHAT_CONTENT, 0, text.data, text.len});
    buf_deinit(&text);
    c->echo = NULL;
    prompt_ids_unref(prompt);
    return st->code;
}

/* Tokens with their log probabilities go in one by one, so that an event has those of its text. */
static enum status_code push_with_logprobs(struct job_choice *c, const int32_t *ids, size_t n,
                                           Baton__V1__FinishReason finish,
                                           const Baton__V1__Logprobs *m, struct status *st)
{
    size_t top_at = 0;

    if (token_logprobs_check(m, n, c->job->thread->router->tokenizer, st) != ST_OK)
        return st->code;
    for (size_t i = 0; i < n && c->answer.finish == NULL; i++) {
        bool unwanted = c->job->format->content_logprobs && chat_answer_in_reasoning(&c->answer);

        token_logprobs_add(c->logprobs, ids[i], m, i, &top_at);
        if (chat_answer_push(&c->answer, ids + i, 1,
                             i + 1 == n ? finish : BATON__V1__FINISH_REASON__FINISH_NONE,
                             st) != ST_OK)
            return st->code;
        if (unwanted)
            token_logprobs_drop(c->logprobs);
    }
    return status_ok(st);
}

static enum status_code push_tokens(struct job_choice *c, const int32_t *ids, size_t n,
                                    Baton__V1__FinishReason finish,
                                    const struct generation_extras *extras, struct status *st)
{
    if (c->echo != NULL && echo_prompt(c, extras->prompt_logprobs, st) != ST_OK)
        return st->code;
    if (c->job->no_output) {
        c->answer.finish = "length";
        return status_ok(st);
    }
    for (size_t i = 0; c->job->format->keeps_ids && i < n; i++)
        token_list_push(&c->ids, ids[i]);
    if (c->logprobs == NULL || n == 0)
        return chat_answer_push(&c->answer, ids, n, finish, st);
    return push_with_logprobs(c, ids, n, finish, extras->logprobs, st);
}

static void on_tokens(void *arg, const int32_t *ids, size_t n, Baton__V1__FinishReason finish,
                      const struct generation_extras *extras)
{
    struct job_choice *c = arg;
    struct job *j = c->job;
    struct status st;

    if (finish != BATON__V1__FINISH_REASON__FINISH_NONE)
        c->generation = NULL; /* it is over */
    if (extras->stats != NULL) {
        request_path_add(&j->path, extras->stats);
        c->n_cached = extras->stats->cached_tokens;
    }
    count_tokens(j, n);
    j->sse.logprobs = NULL; /* what another choice still has is not this one's */
    if (!c->began)
        begin_choice(c);
    j->sse.logprobs = c->logprobs;
    if (push_tokens(c, ids, n, finish, extras, &st) != ST_OK) {
        job_fail(j, &st);
        return;
    }
    if (c->answer.finish != NULL)
        end_choice(c);
    if (j->n_open == 0)
        job_complete(j);
    else if (j->stream)
        send_events(j);
}

static void on_failed(void *arg, const struct status *why)
{
    struct job_choice *c = arg;

    c->generation = NULL;
    job_fail(c->job, why);
}

/* ---- from elsewhere -------------------------------------------------------------------------- */

/* What was said so far is the answer. */
static void end_aborted(struct job *j)
{
    j->sse.logprobs = NULL;
    for (unsigned i = 0; i < j->n_choices; i++) {
        struct job_choice *c = &j->choices[i];

        if (c->answer.finish != NULL)
            continue;
        c->answer.finish = "abort";
        if (!c->began)
            begin_choice(c);
        end_choice(c);
    }
    job_complete(j);
}

size_t jobs_abort(struct router_thread *t, const char *request_id)
{
    struct status why;
    size_t n = 0;

    for (struct job *j = t->jobs, *next; j != NULL; j = next) {
        next = j->next;
        if (request_id != NULL && strcmp(request_id, j->request_id) != 0)
            continue;
        n++;
        log_info("%s: aborted", j->request_id);
        status_set(&why, ST_CANCELLED, "the request was aborted");
        if (j->format->aborts)
            end_aborted(j);
        else
            job_fail(j, &why);
    }
    return n;
}

void jobs_tick(struct router_thread *t)
{
    uint64_t now = clock_now_us(),
             silence_us = (uint64_t)t->router->options->keep_alive_s * 1000000;

    for (struct job *j = t->jobs, *next; j != NULL && silence_us > 0; j = next) {
        uint64_t last_us = j->pinged_us > j->last_us ? j->pinged_us : j->last_us;

        next = j->next;
        if (!j->started || now < last_us + silence_us)
            continue;
        j->pinged_us = now;
        buf_puts(events_of(j), j->format->ping != NULL ? j->format->ping : ": keep-alive\n\n");
        send_events(j);
    }
}

/* ---- starting -------------------------------------------------------------------------------- */

void job_name_request(struct http_exchange *x, const char *rid, char *out)
{
    size_t n, i = 0;
    const char *given = http_request_header(http_exchange_request(x), "x-request-id", &n);

    if (given != NULL && n > 0 && n <= JOB_REQUEST_ID_MAX) {
        for (; i < n && given[i] > ' ' && given[i] < 0x7f && given[i] != '"' && given[i] != '\\';
             i++)
            out[i] = given[i];
        out[i] = '\0';
        if (i == n)
            return;
    }
    if (rid != NULL && *rid != '\0') {
        snprintf(out, JOB_REQUEST_ID_MAX + 1, "%s", rid);
        return;
    }
    memcpy(out, "req-", 4);
    ids_random(out + 4, ID_LETTERS);
}

static bool wants_path(struct http_exchange *x)
{
    size_t n;
    const char *v = http_request_header(http_exchange_request(x), "x-baton-debug", &n);

    return v != NULL && n == 1 && v[0] == '1';
}

static struct job *job_new(struct router_thread *t, struct http_exchange *x,
                           const struct job_format *format, const struct text_task *task,
                           struct status *st)
{
    const struct chat_params *p = &task->params;
    size_t n = task->n_prompts * (size_t)p->n;
    struct job *j = calloc(1, sizeof(*j) + n * sizeof(j->choices[0]));

    if (j == NULL) {
        status_set(st, ST_EXHAUSTED, "no memory for another request");
        return NULL;
    }
    j->thread = t;
    j->exchange = x;
    j->format = format;
    snprintf(j->id, sizeof(j->id), "%s", format->id_prefix);
    ids_random(j->id + strlen(j->id), ID_LETTERS);
    j->created = clock_unix_s();
    j->stream = p->stream;
    j->include_usage = p->include_usage;
    j->wants_path = wants_path(x);
    j->no_output = p->max_tokens == 0;
    j->many = task->many || p->n > 1;
    j->echo = p->echo;
    j->omit_reasoning = p->omit_reasoning;
    j->logprob_text = p->logprob_text;
    j->logprob_tops = p->top_logprobs > 0;
    j->logprob_start = p->logprob_start;
    buf_append(&j->repeated, task->echo.data, task->echo.len);
    j->next = t->jobs;
    if (j->next != NULL)
        j->next->prev = j;
    t->jobs = j;
    j->n_prompt = task->n_prompt_tokens;
    j->sse.null_usage = p->include_usage;
    j->sse.each_usage = p->continuous_usage;
    j->sse.logprobs_style = format->logprobs_style;
    j->sse.tokenizer = t->router->tokenizer;
    j->n_choices = (unsigned)n;
    for (unsigned i = 0; i < j->n_choices; i++) {
        struct job_choice *c = &j->choices[i];

        c->job = j;
        c->index = i;
        c->n_prompt = task->prompts[i / (unsigned)p->n]->n;
        if (p->echo || (p->logprobs && p->logprob_start >= 0)) {
            c->echo = task->prompts[i / (unsigned)p->n];
            c->echo->refs++;
        }
        c->logprobs = p->logprobs ? calloc(1, sizeof(*c->logprobs)) : NULL;
        if (p->logprobs && c->logprobs == NULL) {
            status_set(st, ST_EXHAUSTED, "no memory for another request");
            job_free(j);
            return NULL;
        }
        if (chat_answer_init(&c->answer, t->router, task, &t->answer_scratch, on_delta, c, st) !=
            ST_OK) {
            job_free(j);
            return NULL;
        }
    }
    return j;
}

/* Keeps a client's requests together, where the policy looks at it; longer ones are named by their
 * hash. */
static void take_routing_key(struct http_exchange *x, char *out, size_t cap)
{
    static const char *const headers[] = {"x-smg-routing-key", "x-session-id"};
    const char *v = NULL;
    size_t n = 0;

    for (size_t i = 0; i < sizeof(headers) / sizeof(headers[0]) && v == NULL; i++)
        v = http_request_header(http_exchange_request(x), headers[i], &n);
    if (v != NULL && n < cap)
        snprintf(out, cap, "%.*s", (int)n, v);
    else if (v != NULL)
        snprintf(out, cap, "#%016llx", (unsigned long long)hash_bytes(1, v, n));
}

static enum status_code submit(struct job *j, const struct text_task *task, struct status *st)
{
    struct generation_params params = task->generation;
    const struct request_note *note = request_note(j->exchange);

    snprintf(params.rid, sizeof(params.rid), "%s", j->request_id);
    take_routing_key(j->exchange, params.routing_key, sizeof(params.routing_key));
    params.share = note->who.id;
    params.weight = note->who.weight;
    params.priority += note->who.priority;
    if (note->unix_ns != 0) /* else nobody asked for a trace */
        trace_parent(&note->trace, params.traceparent);
    for (unsigned i = 0; i < j->n_choices; i++) {
        struct generation_callbacks callbacks = {on_tokens, on_failed, &j->choices[i]};

        params.seed = task->generation.seed + i % (unsigned)task->params.n;
        if (generations_submit(j->thread->generations, task->prompts[i / (unsigned)task->params.n],
                               &params, &callbacks, &j->choices[i].generation, st) != ST_OK)
            return st->code;
        j->n_open++;
    }
    return ST_OK;
}

void job_start(struct router_thread *t, struct http_exchange *x, const struct job_format *format,
               const struct text_task *task, const char *request_id, uint64_t begun_us)
{
    struct request_note *note = request_note(x);
    unsigned retry_s;
    struct status st;
    struct job *j = NULL;

    snprintf(note->request_id, sizeof(note->request_id), "%s", request_id);
    if (keys_take(t->router->keys, &note->who, task->n_prompt_tokens, begun_us, &retry_s, &st) !=
        ST_OK) {
        metric_add(t->router->metrics->refused, 1);
        reply_request_id(x, request_id);
        reply_busy(t, x, retry_s, st.msg);
        return;
    }
    j = job_new(t, x, format, task, &st);
    if (j != NULL) {
        snprintf(j->request_id, sizeof(j->request_id), "%s", request_id);
        j->begun_us = begun_us;
    }
    if (j == NULL || submit(j, task, &st) != ST_OK) {
        if (j != NULL)
            job_free(j);
        reply_request_id(x, request_id);
        reply_status(t, x, &st);
        return;
    }
    log_debug("%s: %zu prompt tokens, %s", request_id, j->n_prompt, j->stream ? "stream" : "whole");
    http_exchange_on_gone(x, on_gone, j);
}

void job_refuse(struct router_thread *t, struct http_exchange *x, const struct chat_error *err)
{
    char request_id[JOB_REQUEST_ID_MAX + 1];

    job_name_request(x, NULL, request_id);
    log_debug("%s: refused: %s", request_id, err->message);
    snprintf(request_note(x)->request_id, sizeof(request_id), "%s", request_id);
    reply_request_id(x, request_id);
    reply_error(t, x, err->status, err->param, err->code, err->message);
}
