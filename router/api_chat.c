/*
 * api_chat: POST /v1/chat/completions, streamed and whole.
 *
 * A job is one request: n choices, each a generation and an answer. It lives until its last choice
 * is complete, one fails, or the client goes away. An error before the first byte of the answer is
 * a plain status; later it is an event.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/clock.h"
#include "common/base/json.h"
#include "common/base/log.h"
#include "router/chat_answer.h"
#include "router/chat_sse.h"
#include "router/ids.h"
#include "router/routes.h"

enum { CALL_ID_LETTERS = 24, ID_LETTERS = 24, REQUEST_ID_MAX = 63 };

struct chat_call {
    char id[CALL_ID_LETTERS + 8];
    struct buf name, arguments;
};

struct chat_job;

struct chat_choice {
    struct chat_job *job;
    unsigned index;
    struct generation *generation; /* NULL: not started, or over */
    struct chat_answer answer;
    bool began; /* streamed: its role chunk is out */
    /* Whole answers only: */
    struct buf reasoning, content;
    size_t n_calls;
    struct chat_call *calls;
};

struct chat_job {
    struct router_thread *thread;
    struct http_exchange *exchange;
    char id[CHAT_ID_BYTES];
    char request_id[REQUEST_ID_MAX + 1];
    int64_t created;
    bool stream, include_usage, wants_path;
    bool started; /* streamed: the head of the answer is out */
    struct chat_sse sse;
    size_t n_prompt, cached_tokens;
    /* How it went, for the path chunk and the metrics. */
    uint64_t begun_us, first_us, last_us;
    bool has_stats;
    char prefill[128], decode[128], transport[64];
    uint64_t kv_bytes, prefill_us, transfer_us;
    uint32_t kv_pages, pages_reused, checksums_verified, transfer_retries;
    unsigned n_choices, n_open;
    struct chat_choice choices[];
};

/* ---- life ------------------------------------------------------------------------------------ */

static void choice_deinit(struct chat_choice *c)
{
    generation_cancel(c->generation);
    chat_answer_deinit(&c->answer);
    buf_deinit(&c->reasoning);
    buf_deinit(&c->content);
    for (size_t i = 0; i < c->n_calls; i++) {
        buf_deinit(&c->calls[i].name);
        buf_deinit(&c->calls[i].arguments);
    }
    free(c->calls);
}

/* Cancels what still runs. The exchange must be over. */
static void job_free(struct chat_job *j)
{
    for (unsigned i = 0; i < j->n_choices; i++)
        choice_deinit(&j->choices[i]);
    chat_sse_deinit(&j->sse);
    free(j);
}

static void on_gone(void *arg)
{
    struct chat_job *j = arg;

    log_debug("%s: the client has gone", j->request_id);
    metric_add(j->thread->router->metrics->client_gone, 1);
    job_free(j);
}

static struct router_metrics *metrics_of(const struct chat_job *j)
{
    return j->thread->router->metrics;
}

/* ---- figures --------------------------------------------------------------------------------- */

static struct chat_usage usage_of(const struct chat_job *j)
{
    struct chat_usage u = {.prompt_tokens = j->n_prompt, .cached_tokens = j->cached_tokens};

    for (unsigned i = 0; i < j->n_choices; i++) {
        u.completion_tokens += j->choices[i].answer.n_completion;
        u.reasoning_tokens += j->choices[i].answer.n_reasoning;
    }
    return u;
}

static void note_stats(struct chat_job *j, const Baton__V1__HandoffStats *s)
{
    if (!j->has_stats)
        j->cached_tokens = s->cached_tokens;
    j->has_stats = true;
    snprintf(j->prefill, sizeof(j->prefill), "%s", s->prefill == NULL ? "" : s->prefill);
    snprintf(j->decode, sizeof(j->decode), "%s", s->decode == NULL ? "" : s->decode);
    snprintf(j->transport, sizeof(j->transport), "%s", s->transport == NULL ? "" : s->transport);
    j->kv_bytes += s->kv_bytes;
    j->kv_pages += s->kv_pages;
    j->pages_reused += s->pages_reused;
    j->checksums_verified += s->checksums_verified;
    j->transfer_retries += s->retries;
    j->prefill_us += s->prefill_us;
    j->transfer_us += s->transfer_us;
}

static void put_field(struct buf *out, const char *name, const char *value)
{
    buf_printf(out, "\"%s\":", name);
    json_write_string(out, value, strlen(value));
    buf_puts(out, ",");
}

/* The way of the request: which workers, what moved, how long it took. */
static void put_path(const struct chat_job *j, struct buf *out)
{
    struct chat_usage u = usage_of(j);
    double tpot_ms = u.completion_tokens > 1 ? (double)(j->last_us - j->first_us) / 1e3 /
                                                   (double)(u.completion_tokens - 1)
                                             : 0;

    buf_puts(out, "{");
    put_field(out, "request_id", j->request_id);
    put_field(out, "prefill", j->prefill);
    put_field(out, "decode", j->decode);
    put_field(out, "transport", j->transport);
    buf_printf(out,
               "\"kv_bytes\":%llu,\"kv_pages\":%u,\"pages_reused\":%u,\"checksums_verified\":%u,"
               "\"transfer_retries\":%u,\"cached_tokens\":%zu,\"prefill_ms\":%.3f,"
               "\"transfer_ms\":%.3f,\"ttft_ms\":%.3f,\"tpot_ms\":%.3f}",
               (unsigned long long)j->kv_bytes, j->kv_pages, j->pages_reused, j->checksums_verified,
               j->transfer_retries, j->cached_tokens, (double)j->prefill_us / 1e3,
               (double)j->transfer_us / 1e3, (double)(j->first_us - j->begun_us) / 1e3, tpot_ms);
}

static void count_end(const struct chat_job *j)
{
    struct router_metrics *m = metrics_of(j);
    struct chat_usage u = usage_of(j);

    metric_add(m->prompt_tokens, (double)u.prompt_tokens);
    metric_add(m->cached_tokens, (double)u.cached_tokens);
    metric_add(m->completion_tokens, (double)u.completion_tokens);
    metric_observe(m->e2e_s, (double)(clock_now_us() - j->begun_us) / 1e6);
    log_debug("%s: done: %llu prompt and %llu completion tokens, %.1f ms", j->request_id,
              (unsigned long long)u.prompt_tokens, (unsigned long long)u.completion_tokens,
              (double)(clock_now_us() - j->begun_us) / 1e3);
}

static void count_tokens(struct chat_job *j, size_t n)
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

/* ---- streamed answers ------------------------------------------------------------------------ */

/* Events of one turn are gathered here and leave together. */
static struct buf *events_of(const struct chat_job *j)
{
    return &j->thread->events;
}

static void start_stream(struct chat_job *j)
{
    j->started = true;
    router_metrics_count_reply(metrics_of(j), 200);
    http_reply_header(j->exchange, "x-request-id", j->request_id);
    http_reply_header(j->exchange, "cache-control", "no-cache");
    http_reply_start(j->exchange, 200, "text/event-stream; charset=utf-8");
}

static void stream_delta(struct chat_choice *c, const struct chat_delta *d)
{
    struct chat_job *j = c->job;
    struct chat_usage usage = {0};
    struct buf *out = events_of(j);
    char id[CALL_ID_LETTERS + 8] = "call_";

    if (j->sse.each_usage)
        usage = usage_of(j);
    switch (d->kind) {
    case CHAT_REASONING:
    case CHAT_CONTENT:
        chat_sse_text(&j->sse, c->index,
                      d->kind == CHAT_REASONING ? "reasoning_content" : "content", d->text, d->len,
                      &usage, out);
        break;
    case CHAT_CALL:
        ids_random(id + 5, CALL_ID_LETTERS);
        chat_sse_call(&j->sse, c->index, d->call, id, d->text, d->len, &usage, out);
        break;
    case CHAT_ARGUMENTS:
        chat_sse_arguments(&j->sse, c->index, d->call, d->text, d->len, &usage, out);
        break;
    }
}

static void put_stream_end(struct chat_job *j)
{
    struct chat_usage usage = usage_of(j);
    struct buf *out = events_of(j), path = {0};

    if (j->include_usage)
        chat_sse_usage(&j->sse, &usage, out);
    if (j->wants_path) {
        put_path(j, &path);
        chat_sse_path(&j->sse, &path, out);
        buf_deinit(&path);
    }
    chat_sse_done(out);
}

/* Hands the gathered events to the client. @return false when the job is gone: the client reads too
 * slowly */
static bool send_events(struct chat_job *j)
{
    struct buf *out = events_of(j);
    struct status st;

    if (http_reply_write(j->exchange, out->data, out->len, &st) == ST_OK) {
        out->len = 0;
        return true;
    }
    out->len = 0;
    log_warn("%s: cut off: %s", j->request_id, st.msg);
    metric_add(metrics_of(j)->client_gone, 1);
    http_reply_abort(j->exchange);
    job_free(j);
    return false;
}

/* ---- whole answers --------------------------------------------------------------------------- */

static void keep_call(struct chat_choice *c, const struct chat_delta *d)
{
    struct chat_call *more = realloc(c->calls, (c->n_calls + 1) * sizeof(*more)), *call;

    if (more == NULL)
        abort();
    c->calls = more;
    call = &c->calls[c->n_calls++];
    *call = (struct chat_call){.id = "call_"};
    ids_random(call->id + 5, CALL_ID_LETTERS);
    buf_append(&call->name, d->text, d->len);
}

static void keep_delta(struct chat_choice *c, const struct chat_delta *d)
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

static void put_calls(const struct chat_choice *c, struct buf *out)
{
    buf_puts(out, ",\"tool_calls\":[");
    for (size_t i = 0; i < c->n_calls; i++) {
        buf_printf(out,
                   "%s{\"index\":%zu,\"id\":\"%s\",\"type\":\"function\",\"function\":{\"name\":",
                   i > 0 ? "," : "", i, c->calls[i].id);
        json_write_string(out, c->calls[i].name.data, c->calls[i].name.len);
        buf_puts(out, ",\"arguments\":");
        json_write_string(out, c->calls[i].arguments.data, c->calls[i].arguments.len);
        buf_puts(out, "}}");
    }
    buf_puts(out, "]");
}

static void put_choice(const struct chat_choice *c, struct buf *out)
{
    buf_printf(out, "{\"index\":%u,\"message\":{\"role\":\"assistant\",\"content\":", c->index);
    if (c->content.len == 0 && c->n_calls > 0)
        buf_puts(out, "null");
    else
        json_write_string(out, c->content.data, c->content.len);
    buf_puts(out, ",\"reasoning_content\":");
    if (c->reasoning.len == 0)
        buf_puts(out, "null");
    else
        json_write_string(out, c->reasoning.data, c->reasoning.len);
    if (c->n_calls > 0)
        put_calls(c, out);
    buf_printf(out, "},\"logprobs\":null,\"finish_reason\":\"%s\"}", c->answer.finish);
}

static void reply_whole(struct chat_job *j)
{
    struct chat_usage usage = usage_of(j);
    struct buf out = {0};

    buf_printf(&out,
               "{\"id\":\"%s\",\"object\":\"chat.completion\",\"created\":%lld,\"model\":", j->id,
               (long long)j->created);
    json_write_string(&out, j->thread->router->model_name, strlen(j->thread->router->model_name));
    buf_puts(&out, ",\"choices\":[");
    for (unsigned i = 0; i < j->n_choices; i++) {
        buf_puts(&out, i > 0 ? "," : "");
        put_choice(&j->choices[i], &out);
    }
    buf_puts(&out, "],\"usage\":");
    chat_usage_json(&usage, &out);
    if (j->wants_path) {
        buf_puts(&out, ",\"baton\":");
        put_path(j, &out);
    }
    buf_puts(&out, "}");
    http_reply_header(j->exchange, "x-request-id", j->request_id);
    reply_json(j->thread, j->exchange, 200, &out);
    buf_deinit(&out);
}

/* ---- events of generations ------------------------------------------------------------------- */

/* Ends the request with an error: a status while nothing has been sent, else an event. */
static void job_fail(struct chat_job *j, const struct status *why)
{
    int http = status_http(why->code);

    log_info("%s: failed: %s", j->request_id, why->msg);
    if (!j->started) {
        http_reply_header(j->exchange, "x-request-id", j->request_id);
        reply_status(j->thread, j->exchange, why);
    } else {
        metric_add(metrics_of(j)->stream_errors, 1);
        chat_sse_error(http, why->msg, events_of(j));
        chat_sse_done(events_of(j));
        if (!send_events(j))
            return;
        http_reply_end(j->exchange);
    }
    job_free(j);
}

static void job_complete(struct chat_job *j)
{
    count_end(j);
    if (!j->stream) {
        reply_whole(j);
    } else {
        put_stream_end(j);
        if (!send_events(j))
            return;
        http_reply_end(j->exchange);
    }
    job_free(j);
}

static void on_delta(void *arg, const struct chat_delta *d)
{
    struct chat_choice *c = arg;

    if (c->job->stream)
        stream_delta(c, d);
    else
        keep_delta(c, d);
}

static void begin_choice(struct chat_choice *c)
{
    struct chat_usage usage = usage_of(c->job);

    c->began = true;
    if (!c->job->stream)
        return;
    if (!c->job->started)
        start_stream(c->job);
    chat_sse_role(&c->job->sse, c->index, &usage, events_of(c->job));
}

static void on_tokens(void *arg, const int32_t *ids, size_t n, Baton__V1__FinishReason finish,
                      const Baton__V1__HandoffStats *stats)
{
    struct chat_choice *c = arg;
    struct chat_job *j = c->job;
    struct chat_usage usage;
    struct status st;

    if (finish != BATON__V1__FINISH_REASON__FINISH_NONE)
        c->generation = NULL; /* it is over */
    if (stats != NULL)
        note_stats(j, stats);
    count_tokens(j, n);
    if (!c->began)
        begin_choice(c);
    if (chat_answer_push(&c->answer, ids, n, finish, &st) != ST_OK) {
        job_fail(j, &st);
        return;
    }
    if (c->answer.finish != NULL) {
        generation_cancel(c->generation); /* a stop string, or nothing more counts */
        c->generation = NULL;
        j->n_open--;
        usage = usage_of(j);
        if (j->stream)
            chat_sse_finish(&j->sse, c->index, c->answer.finish, &usage, events_of(j));
    }
    if (j->n_open == 0)
        job_complete(j);
    else if (j->stream)
        send_events(j);
}

static void on_failed(void *arg, const struct status *why)
{
    struct chat_choice *c = arg;

    c->generation = NULL;
    job_fail(c->job, why);
}

/* ---- requests -------------------------------------------------------------------------------- */

/* The client's own id when it is printable, else one of ours. */
static void name_request(struct http_exchange *x, char *out)
{
    size_t n;
    const char *given = http_request_header(http_exchange_request(x), "x-request-id", &n);

    if (given != NULL && n > 0 && n <= REQUEST_ID_MAX) {
        size_t i = 0;

        for (; i < n && given[i] > ' ' && given[i] < 0x7f && given[i] != '"' && given[i] != '\\';
             i++)
            out[i] = given[i];
        out[i] = '\0';
        if (i == n)
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

static struct chat_job *job_new(struct router_thread *t, struct http_exchange *x,
                                const struct chat_task *task, const char *request_id,
                                struct status *st)
{
    const struct chat_params *p = &task->params;
    struct chat_job *j = calloc(1, sizeof(*j) + (size_t)p->n * sizeof(j->choices[0]));

    if (j == NULL) {
        status_set(st, ST_EXHAUSTED, "no memory for another request");
        return NULL;
    }
    j->thread = t;
    j->exchange = x;
    memcpy(j->id, "chatcmpl-", 9);
    ids_random(j->id + 9, ID_LETTERS);
    snprintf(j->request_id, sizeof(j->request_id), "%s", request_id);
    j->created = clock_unix_s();
    j->stream = p->stream;
    j->include_usage = p->include_usage;
    j->wants_path = wants_path(x);
    j->n_prompt = task->prompt->n;
    chat_sse_init(&j->sse, j->id, j->created, t->router->model_name);
    j->sse.null_usage = p->include_usage;
    j->sse.each_usage = p->continuous_usage;
    j->n_choices = (unsigned)p->n;
    for (unsigned i = 0; i < j->n_choices; i++) {
        struct chat_choice *c = &j->choices[i];

        c->job = j;
        c->index = i;
        if (chat_answer_init(&c->answer, t->router, task, &t->answer_scratch, on_delta, c, st) !=
            ST_OK) {
            job_free(j);
            return NULL;
        }
    }
    return j;
}

static enum status_code job_submit(struct chat_job *j, const struct chat_task *task,
                                   struct status *st)
{
    struct generation_params params = task->generation;

    snprintf(params.rid, sizeof(params.rid), "%s", j->request_id);
    for (unsigned i = 0; i < j->n_choices; i++) {
        struct generation_callbacks callbacks = {on_tokens, on_failed, &j->choices[i]};

        params.seed = task->generation.seed + i;
        if (generations_submit(j->thread->generations, task->prompt, &params, &callbacks,
                               &j->choices[i].generation, st) != ST_OK)
            return st->code;
        j->n_open++;
    }
    return ST_OK;
}

void api_chat(struct router_thread *t, struct http_exchange *x)
{
    struct http_request *r = http_exchange_request(x);
    uint64_t begun_us = clock_now_us();
    char request_id[REQUEST_ID_MAX + 1];
    struct chat_task task = {0};
    struct chat_error err;
    struct chat_job *j = NULL;
    struct status st;

    name_request(x, request_id);
    if (!chat_task_run(&task, t->router, r->body.data, r->body.len,
                       workers_context_length(t->workers), &t->scratch, &err)) {
        log_debug("%s: refused: %s", request_id, err.message);
        http_reply_header(x, "x-request-id", request_id);
        reply_error(t, x, err.status, err.param, err.code, err.message);
        goto done;
    }
    buf_deinit(&r->body); /* it may be large and the answer long */
    if (task.params.rid != NULL && strncmp(request_id, "req-", 4) == 0)
        snprintf(request_id, sizeof(request_id), "%s", task.params.rid);
    j = job_new(t, x, &task, request_id, &st);
    if (j == NULL || job_submit(j, &task, &st) != ST_OK) {
        if (j != NULL)
            job_free(j);
        http_reply_header(x, "x-request-id", request_id);
        reply_status(t, x, &st);
        goto done;
    }
    j->begun_us = begun_us;
    log_debug("%s: %zu prompt tokens, %s", request_id, j->n_prompt, j->stream ? "stream" : "whole");
    http_exchange_on_gone(x, on_gone, j);
done:
    chat_task_deinit(&task);
}
