/*
 * baton generate: token ids straight to a decode worker, as a router would send them, without a
 * router: JSON lines in, JSON lines out, one request after the other.
 */
#include "deploy/baton/commands.h"

#include <inttypes.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "baton/v1/decode.pb-c.h"
#include "common/base/buf.h"
#include "common/base/flags.h"
#include "common/base/json.h"
#include "common/rpc/rpc_message.h"

enum { CONNECT_TIMEOUT_MS = 5000 };

/* One request's answer, filled on the rpc thread. */
struct answer {
    pthread_mutex_t lock; /* guards all */
    pthread_cond_t changed;
    uint64_t request_id;
    bool greeted, over, closed;
    struct buf ids, logprobs, stats; /* JSON text */
    const char *finish;
    struct status error;
};

static const char *finish_name(Baton__V1__FinishReason f)
{
    switch (f) {
    case BATON__V1__FINISH_REASON__FINISH_STOP:
        return "stop";
    case BATON__V1__FINISH_REASON__FINISH_LENGTH:
        return "length";
    default:
        return "abort";
    }
}

static void put_string(struct buf *b, const char *key, const char *value)
{
    buf_printf(b, "%s\"%s\": ", b->len > 0 ? ", " : "", key);
    json_write_string(b, value != NULL ? value : "", value != NULL ? strlen(value) : 0);
}

static void put_number(struct buf *b, const char *key, uint64_t value)
{
    buf_printf(b, ", \"%s\": %" PRIu64, key, value);
}

static void keep_stats(struct buf *b, const Baton__V1__HandoffStats *s)
{
    put_string(b, "prefill", s->prefill);
    put_string(b, "transport", s->transport);
    put_number(b, "kv_bytes", s->kv_bytes);
    put_number(b, "kv_pages", s->kv_pages);
    put_number(b, "pages_reused", s->pages_reused);
    put_number(b, "cached_tokens", s->cached_tokens);
    put_number(b, "checksums_verified", s->checksums_verified);
    put_number(b, "retries", s->retries);
    put_number(b, "prefill_us", s->prefill_us);
    put_number(b, "transfer_us", s->transfer_us);
    put_number(b, "hidden_bytes", s->hidden_bytes);
    put_number(b, "last_bytes", s->last_bytes);
    put_number(b, "tail_us", s->tail_us);
    put_number(b, "arrive_us", s->arrive_us);
}

static void on_batch(struct answer *a, const Baton__V1__TokenBatch *t)
{
    if (t->request_id != a->request_id)
        return;
    for (size_t i = 0; i < t->n_token_ids; i++)
        buf_printf(&a->ids, "%s%d", a->ids.len > 0 ? ", " : "", t->token_ids[i]);
    for (size_t i = 0; t->logprobs != NULL && i < t->logprobs->n_logprobs; i++)
        buf_printf(&a->logprobs, "%s%.9g", a->logprobs.len > 0 ? ", " : "",
                   (double)t->logprobs->logprobs[i]);
    if (t->stats != NULL)
        keep_stats(&a->stats, t->stats);
    if (t->has_finish && t->finish != BATON__V1__FINISH_REASON__FINISH_NONE) {
        a->finish = finish_name(t->finish);
        a->over = true;
    }
}

static void on_failed(struct answer *a, const Baton__V1__DecodeFailed *f)
{
    if (f->request_id != a->request_id)
        return;
    status_set(&a->error, (enum status_code)f->error->code, "%s", f->error->message);
    a->over = true;
}

static void on_message(void *arg, struct rpc_session *s, const void *data, size_t len)
{
    struct answer *a = arg;
    Baton__V1__DecodeReply *m = baton__v1__decode_reply__unpack(NULL, len, data);

    (void)s;
    if (m == NULL)
        return;
    pthread_mutex_lock(&a->lock);
    a->greeted |= m->hello != NULL;
    for (size_t i = 0; i < m->n_batch; i++)
        on_batch(a, m->batch[i]);
    for (size_t i = 0; i < m->n_failed; i++)
        on_failed(a, m->failed[i]);
    pthread_cond_signal(&a->changed);
    pthread_mutex_unlock(&a->lock);
    baton__v1__decode_reply__free_unpacked(m, NULL);
}

static void on_close(void *arg, struct rpc_session *s, const struct status *why)
{
    struct answer *a = arg;

    (void)s;
    pthread_mutex_lock(&a->lock);
    a->closed = true;
    if (!a->over) {
        a->error = *why;
        if (a->error.code == ST_OK)
            status_set(&a->error, ST_UNAVAILABLE, "the decode worker ended the session");
        a->over = true;
    }
    pthread_cond_signal(&a->changed);
    pthread_mutex_unlock(&a->lock);
}

/* ---- the request ---- */

static enum status_code read_ids(const struct json *line, int32_t **out, size_t *n,
                                 struct status *st)
{
    const struct json *ids = json_get(line, "ids");
    int32_t *list;

    if (ids == NULL || ids->type != JSON_ARRAY)
        return status_set(st, ST_INVALID, "a line needs \"ids\": [token, ...]");
    list = malloc((ids->len + 1) * sizeof(*list));
    if (list == NULL)
        return status_set(st, ST_EXHAUSTED, "no memory for %u ids", ids->len);
    for (uint32_t i = 0; i < ids->len; i++) {
        int64_t v;

        if (!json_int(&ids->items[i], &v) || v < 0 || v > INT32_MAX) {
            free(list);
            return status_set(st, ST_INVALID, "ids[%u] is no token id", i);
        }
        list[i] = (int32_t)v;
    }
    *out = list;
    *n = ids->len;
    return status_ok(st);
}

static bool is_true(const struct json *line, const char *key)
{
    const struct json *v = json_get(line, key);

    return v != NULL && v->type == JSON_TRUE;
}

/* Numbers by the names that the message has, where the line has them. */
static void read_floats(const struct json *line, Baton__V1__Sampling *s)
{
    const struct {
        const char *name;
        protobuf_c_boolean *has;
        float *value;
    } rows[] = {
#define ROW(field) {#field, &s->has_##field, &s->field}
        ROW(temperature),
        ROW(top_p),
        ROW(min_p),
        ROW(presence_penalty),
        ROW(frequency_penalty),
        ROW(repetition_penalty),
#undef ROW
    };

    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        double d;

        if (!json_double(json_get(line, rows[i].name), &d))
            continue;
        *rows[i].has = 1;
        *rows[i].value = (float)d;
    }
}

/* {"token id": bias, ...} and [stop token, ...]; the caller frees the lists. */
static enum status_code read_lists(const struct json *line, Baton__V1__Sampling *s,
                                   struct status *st)
{
    const struct json *bias = json_get(line, "logit_bias"),
                      *stop = json_get(line, "stop_token_ids");
    size_t n_bias = bias != NULL && bias->type == JSON_OBJECT ? bias->len : 0;
    size_t n_stop = stop != NULL && stop->type == JSON_ARRAY ? stop->len : 0;

    s->logit_bias_ids = calloc(n_bias + 1, sizeof(*s->logit_bias_ids));
    s->logit_bias = calloc(n_bias + 1, sizeof(*s->logit_bias));
    s->stop_token_ids = calloc(n_stop + 1, sizeof(*s->stop_token_ids));
    if (s->logit_bias_ids == NULL || s->logit_bias == NULL || s->stop_token_ids == NULL)
        return status_set(st, ST_EXHAUSTED, "no memory for the lists of a request");
    for (size_t i = 0; i < n_bias; i++) {
        double d = 0;

        json_double(&bias->members[i].value, &d);
        s->logit_bias_ids[i] = atoi(bias->members[i].key);
        s->logit_bias[i] = (float)d;
    }
    for (size_t i = 0; i < n_stop; i++) {
        int64_t id = -1;

        json_int(&stop->items[i], &id);
        s->stop_token_ids[i] = (int32_t)id;
    }
    s->n_logit_bias = s->n_logit_bias_ids = n_bias;
    s->n_stop_token_ids = n_stop;
    return status_ok(st);
}

static enum status_code read_sampling(const struct json *line, Baton__V1__Sampling *s,
                                      struct status *st)
{
    int64_t i;

    read_floats(line, s);
    if (json_int(json_get(line, "top_k"), &i)) {
        s->has_top_k = true;
        s->top_k = (int32_t)i;
    }
    if (json_int(json_get(line, "seed"), &i)) {
        s->has_seed = true;
        s->seed = (uint64_t)i;
    }
    s->has_max_new_tokens = s->has_min_new_tokens = true;
    s->max_new_tokens = json_int(json_get(line, "max_new_tokens"), &i) && i > 0 ? (uint32_t)i : 16;
    s->min_new_tokens = json_int(json_get(line, "min_new_tokens"), &i) && i > 0 ? (uint32_t)i : 0;
    s->has_ignore_eos = s->has_logprobs = true;
    s->ignore_eos = is_true(line, "ignore_eos");
    s->logprobs = is_true(line, "logprobs");
    return read_lists(line, s, st);
}

static void free_lists(Baton__V1__Sampling *s)
{
    free(s->logit_bias_ids);
    free(s->logit_bias);
    free(s->stop_token_ids);
}

static enum status_code send_submit(struct rpc_session *s, uint64_t id, const struct json *line,
                                    const struct flag_list *prefills, struct status *st)
{
    Baton__V1__DecodeRequest m = BATON__V1__DECODE_REQUEST__INIT;
    Baton__V1__DecodeSubmit submit = BATON__V1__DECODE_SUBMIT__INIT, *submits[] = {&submit};
    Baton__V1__Sampling sampling = BATON__V1__SAMPLING__INIT;
    int64_t salt = 0, n_emitted = 0, pin_s = 0;

    if (read_ids(line, &submit.token_ids, &submit.n_token_ids, st) != ST_OK)
        return st->code;
    if (read_sampling(line, &sampling, st) != ST_OK)
        goto done;
    submit.request_id = id;
    submit.has_n_emitted = json_int(json_get(line, "n_emitted"), &n_emitted);
    submit.n_emitted = (uint32_t)n_emitted;
    submit.sampling = &sampling;
    submit.n_prefill = prefills->n;
    submit.prefill = (char **)prefills->items;
    submit.rid = "baton-generate";
    submit.has_cache_salt = json_int(json_get(line, "cache_salt"), &salt);
    submit.cache_salt = submit.has_cache_salt ? (uint64_t)salt : 0;
    submit.has_cache_pin_s = json_int(json_get(line, "cache_pin_s"), &pin_s);
    submit.cache_pin_s = pin_s > 0 && pin_s < UINT32_MAX ? (uint32_t)pin_s : 0;
    m.n_submit = 1;
    m.submit = submits;
    rpc_session_send_message(s, &m.base, st);
done:
    free_lists(&sampling);
    free(submit.token_ids);
    return st->code;
}

static void print_answer(struct answer *a)
{
    if (a->error.code != ST_OK) {
        struct buf e = {0};

        put_string(&e, "error", a->error.msg);
        put_string(&e, "code", status_name(a->error.code));
        printf("{%s}\n", buf_cstr(&e));
        buf_deinit(&e);
    } else {
        printf("{\"ids\": [%s], \"finish\": \"%s\", ", buf_cstr(&a->ids), a->finish);
        if (a->logprobs.len > 0)
            printf("\"logprobs\": [%s], ", buf_cstr(&a->logprobs));
        printf("\"stats\": {%s}}\n", buf_cstr(&a->stats));
    }
    fflush(stdout);
}

static void run_line(struct rpc_session *s, struct answer *a, const char *text, size_t len,
                     const struct flag_list *prefills)
{
    struct json_doc *doc = NULL;

    pthread_mutex_lock(&a->lock);
    a->request_id++;
    a->ids.len = a->logprobs.len = a->stats.len = 0;
    a->over = a->closed;
    if (!a->closed)
        status_ok(&a->error);
    if (!a->over && (json_parse(text, len, 0, &doc, &a->error) != ST_OK ||
                     send_submit(s, a->request_id, json_root(doc), prefills, &a->error) != ST_OK))
        a->over = true;
    while (!a->over)
        pthread_cond_wait(&a->changed, &a->lock);
    print_answer(a);
    pthread_mutex_unlock(&a->lock);
    if (doc != NULL)
        json_free(doc);
}

static enum status_code greet(struct rpc_session *s, struct status *st)
{
    Baton__V1__DecodeRequest m = BATON__V1__DECODE_REQUEST__INIT;
    Baton__V1__Identity hello = BATON__V1__IDENTITY__INIT;

    hello.role = "baton-generate";
    hello.incarnation = 1;
    hello.protocol = BATON__V1__PROTOCOL__PROTOCOL_NOW;
    m.hello = &hello;
    return rpc_session_send_message(s, &m.base, st);
}

static enum status_code run(const char *decode, const struct flag_list *prefills, struct status *st)
{
    static const struct rpc_session_callbacks callbacks = {on_message, on_close};
    struct answer a = {0};
    struct rpc *rpc = NULL;
    struct rpc_client *client = NULL;
    struct rpc_session *s = NULL;
    char *line = NULL;
    size_t cap = 0;
    ssize_t n;

    pthread_mutex_init(&a.lock, NULL);
    pthread_cond_init(&a.changed, NULL);
    if (rpc_start(&rpc, st) != ST_OK || rpc_client_new(rpc, decode, &client, st) != ST_OK ||
        rpc_client_open(client, "/baton.v1.Decode/Session", CONNECT_TIMEOUT_MS, &callbacks, &a, &s,
                        st) != ST_OK ||
        greet(s, st) != ST_OK)
        goto done;
    while ((n = getline(&line, &cap, stdin)) > 0)
        run_line(s, &a, line, (size_t)(line[n - 1] == '\n' ? n - 1 : n), prefills);
    status_ok(st);
done:
    free(line);
    rpc_client_free(client);
    rpc_session_unref(s);
    rpc_stop(rpc);
    buf_deinit(&a.ids);
    buf_deinit(&a.stats);
    pthread_cond_destroy(&a.changed);
    pthread_mutex_destroy(&a.lock);
    return st->code;
}

int cmd_generate(int argc, char **argv)
{
    const char *decode = "127.0.0.1:30001";
    struct flag_list prefills = {0};
    const struct flag flags[] = {
        {"decode", FLAG_STRING, &decode, .arg = "HOST:PORT", .help = "the decode worker"},
        {"prefill", FLAG_LIST, &prefills, .arg = "HOST:PORT",
         .help = "prefill worker it shall use, as the decode worker reaches it; then fallbacks"},
        {0},
    };
    struct status st;

    if (flags_parse(flags, argc, argv, NULL, NULL, &st) == ST_CANCELLED) {
        flags_help(
            flags,
            "usage: baton generate --prefill HOST:PORT [--decode HOST:PORT] < lines\n\n"
            "A line: {\"ids\": [..], \"max_new_tokens\": N, \"temperature\": T, \"top_p\": P,\n"
            "\"top_k\": K, \"seed\": S, \"cache_salt\": N, \"cache_pin_s\": SECONDS,\n"
            "\"ignore_eos\": BOOL}; the answer:\n"
            "{\"ids\", \"finish\", \"stats\"} or {\"error\", \"code\"}.\n");
        return 0;
    }
    if (st.code == ST_OK && prefills.n == 0)
        status_set(&st, ST_INVALID, "--prefill HOST:PORT is needed");
    if (st.code != ST_OK || run(decode, &prefills, &st) != ST_OK) {
        fprintf(stderr, "baton generate: %s\n", st.msg);
        return 2;
    }
    return 0;
}
