/*
 * mock_decode: a decode worker (and, on a second port, a prefill worker's health) without a model,
 * for tests of the router.
 *
 *   mock_decode --tokenizer-path F --port N [--prefill-port M]
 *
 * It prints one line for each thing that happens ("submit RID", "cancel RID", "session closed").
 * What it answers stands in the prompt itself: the last "mock{...}" in it is a JSON object:
 *   text         what to generate (special tokens by their spelling), then end of sentence
 *   report       true: generate a JSON report of the submission instead; "ids": with its tokens
 *   repeat       the text so many times
 *   batch        tokens per message (1)
 *   interval_ms  between messages (0); delay_ms: before the first
 *   fail_after   after so many tokens DecodeFailed with `code` (3) and `message`
 *   hang_after   after so many tokens nothing more
 *   die_after    after so many tokens exit at once, unless the request is a resumed one
 *   die_flag     ... and only the worker that makes this file first
 *   fail_prefill port of a prefill worker: a submission that names it first fails, and it is blamed
 *   bad_token    true: an id outside the vocabulary
 *   bad_logprobs 1: log probabilities are left out, 2: of one token too few, 3: of a token outside
 *                the vocabulary
 * Log probabilities, when asked for: output token k (eos included) has -k / 8; the most probable
 * ones are token + j, j = 0, 1, ..., with j less each. Prompt token i >= 1 has -i / 16, and so on.
 * A resumed submission (n_emitted > 0) goes on where it was.
 */
#include <arpa/inet.h>
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "baton/v1/decode.pb-c.h"
#include "common/base/clock.h"
#include "common/base/flags.h"
#include "baton/v1/admin.pb-c.h"
#include "common/base/json.h"
#include "common/base/log.h"
#include "common/base/mailbox.h"
#include "common/kv/block_hash.h"
#include "common/rpc/rpc.h"
#include "common/rpc/rpc_message.h"
#include "common/text/tokenizer.h"
#include "common/worker/publisher.h"

enum { REQUESTS_MAX = 4096, DIRECTIVE_TOKENS = 8192 /* it is looked for in the last ones */ };
enum { M_DATA, M_CLOSED };

struct mock_msg {
    struct msg base;
    struct rpc_session *session; /* a reference */
    Baton__V1__DecodeRequest *request;
};

/* A Logprobs message and its arrays. */
struct mock_logprobs {
    Baton__V1__Logprobs m;
    float *logprobs, *top_logprobs;
    uint32_t *n_top;
    int32_t *top_ids;
};

struct request {
    bool used;
    struct rpc_session *session;
    uint64_t id;
    char rid[64];
    struct token_list out;
    size_t at; /* tokens sent */
    int64_t batch, interval_ms, fail_after, code, hang_after, die_after;
    char message[128], die_flag[256];
    uint64_t next_us, delay_us, order;
    bool held; /* waits for one of --max-running */
    bool resumed, stats_sent;
    bool wants_logprobs, wants_prompt_logprobs;
    size_t n_top;
    int64_t bad_logprobs;
    struct token_list prompt; /* with wants_prompt_logprobs */
    struct mock_logprobs logprobs, prompt_logprobs;
    Baton__V1__FinishReason finish; /* after the last token */
};

static struct {
    const char *tokenizer_path, *tls_ca, *tls_cert, *tls_key;
    int64_t port, prefill_port, context_length, fail_first, max_running, step_ms;
    bool check_prefill, queue;
} options = {.context_length = 8192};

static struct tokenizer *tokenizer;
static struct mailbox *mailbox;
static struct request requests[REQUESTS_MAX];
static char address[64], last_prefill[64];
static struct publisher *publisher;
static uint64_t n_steps, n_submits;

/* ---- rpc thread ------------------------------------------------------------------------------ */

static void push(int type, struct rpc_session *s, Baton__V1__DecodeRequest *request)
{
    struct mock_msg *m = calloc(1, sizeof(*m));

    m->base.type = (uint32_t)type;
    m->session = rpc_session_ref(s);
    m->request = request;
    mailbox_push(mailbox, &m->base);
}

/* Admin.FlushCache */
static enum status_code on_flush(void *arg, const void *data, size_t len, void **reply,
                                 size_t *reply_len, struct status *st)
{
    Baton__V1__FlushCacheReply empty = BATON__V1__FLUSH_CACHE_REPLY__INIT;

    (void)arg, (void)data, (void)len;
    printf("flush\n");
    fflush(stdout);
    return rpc_message_pack(&empty.base, reply, reply_len, st);
}

static void *on_open(void *arg, struct rpc_session *s, struct status *st)
{
    (void)s;
    status_ok(st);
    return arg;
}

static void on_message(void *arg, struct rpc_session *s, const void *data, size_t len)
{
    (void)arg;
    push(M_DATA, s, baton__v1__decode_request__unpack(NULL, len, data));
}

static void on_close(void *arg, struct rpc_session *s, const struct status *why)
{
    (void)arg, (void)why;
    push(M_CLOSED, s, NULL);
}

/* ---- what to answer -------------------------------------------------------------------------- */

static int64_t number(const struct json *d, const char *key, int64_t absent)
{
    const struct json *v = d == NULL ? NULL : json_get(d, key);
    int64_t n;

    return v != NULL && json_int(v, &n) ? n : absent;
}

/* Where the last mock{...} of the prompt begins, in text, its last n tokens. */
static const char *find_directive(const Baton__V1__DecodeSubmit *m, size_t n, struct buf *text)
{
    struct detokenizer d = {0};
    struct status st;
    const char *at = NULL;
    size_t n_prompt = m->n_token_ids - m->n_emitted;

    text->len = 0;
    for (size_t i = n_prompt > n ? n_prompt - n : 0; i < n_prompt; i++)
        detokenizer_push(&d, tokenizer, m->token_ids[i], text, &st);
    for (const char *p = buf_cstr(text); (p = strstr(p, "mock{")) != NULL; p++)
        at = p + 4;
    return at;
}

/* The last mock{...} of the prompt, or NULL. */
static struct json_doc *directive(const Baton__V1__DecodeSubmit *m)
{
    struct buf text = {0};
    struct json_doc *doc = NULL;
    struct status st;
    const char *at = find_directive(m, DIRECTIVE_TOKENS / 64, &text), *end;
    int depth = 0;
    bool in_string = false;

    if (at == NULL) /* mostly it is short, and others wait for this worker meanwhile */
        at = find_directive(m, DIRECTIVE_TOKENS, &text);
    for (end = at; end != NULL && *end != '\0'; end++) {
        if (in_string && *end == '\\' && end[1] != '\0')
            end++;
        else if (*end == '"')
            in_string = !in_string;
        else if (!in_string && *end == '{')
            depth++;
        else if (!in_string && *end == '}' && --depth == 0)
            break;
    }
    if (at != NULL && *end == '}' &&
        json_parse(at, (size_t)(end + 1 - at), 0, &doc, &st) != ST_OK) {
        printf("bad directive: %s\n", st.msg);
        doc = NULL;
    }
    buf_deinit(&text);
    return doc;
}

static void report(const Baton__V1__DecodeSubmit *m, bool ids, struct buf *out)
{
    const Baton__V1__Sampling *s = m->sampling;

    buf_printf(out,
               "{\"temperature\":%g,\"top_p\":%g,\"top_k\":%d,\"min_p\":%g,\"seed\":%llu,"
               "\"max_new_tokens\":%u,\"min_new_tokens\":%u,\"ignore_eos\":%d,\"stop\":[",
               s->temperature, s->top_p, s->top_k, s->min_p, (unsigned long long)s->seed,
               s->max_new_tokens, s->min_new_tokens, s->ignore_eos);
    for (size_t i = 0; i < s->n_stop_token_ids; i++)
        buf_printf(out, "%s%d", i > 0 ? "," : "", s->stop_token_ids[i]);
    buf_printf(out,
               "],\"presence_penalty\":%g,\"frequency_penalty\":%g,\"repetition_penalty\":%g,"
               "\"logprobs\":%d,\"top_logprobs\":%u,\"prompt_logprobs\":%d,\"logit_bias\":[",
               s->presence_penalty, s->frequency_penalty,
               s->has_repetition_penalty ? s->repetition_penalty : 1, s->logprobs, s->top_logprobs,
               s->prompt_logprobs);
    for (size_t i = 0; i < s->n_logit_bias; i++)
        buf_printf(out, "%s[%d,%g]", i > 0 ? "," : "", s->logit_bias_ids[i], s->logit_bias[i]);
    buf_printf(out, "],\"prompt\":[");
    for (size_t i = 0; ids && i < m->n_token_ids; i++)
        buf_printf(out, "%s%d", i > 0 ? "," : "", m->token_ids[i]);
    buf_printf(out,
               "],\"priority\":%d,\"cache_salt\":\"%016llx\",\"n_prompt\":%zu,\"rid\":\"%s\","
               "\"prefill\":[",
               m->priority, (unsigned long long)m->cache_salt, m->n_token_ids, m->rid);
    for (size_t i = 0; i < m->n_prefill; i++)
        buf_printf(out, "%s\"%s\"", i > 0 ? "," : "", m->prefill[i]);
    buf_puts(out, "]}");
}

static void fill_output(struct request *r, const Baton__V1__DecodeSubmit *m, const struct json *d)
{
    const struct json *text = d == NULL ? NULL : json_get(d, "text");
    const struct json *wants_report = d == NULL ? NULL : json_get(d, "report");
    bool thinks = m->token_ids[m->n_token_ids - m->n_emitted - 1] ==
                  tokenizer_added_id(tokenizer, "<think>", 7);
    int32_t eos =
        tokenizer_added_id(tokenizer, "<｜end▁of▁sentence｜>", strlen("<｜end▁of▁sentence｜>"));
    struct buf out = {0};
    struct status st;

    if (wants_report != NULL) {
        buf_puts(&out, thinks ? "</think>" : "");
        report(m, json_is(wants_report, "ids"), &out);
    } else if (text != NULL && text->type == JSON_STRING) {
        for (int64_t i = number(d, "repeat", 1); i > 0; i--)
            buf_append(&out, text->text, text->len);
    } else {
        buf_puts(&out, thinks ? "I think.</think>Hello!" : "Hello!");
    }
    if (tokenizer_encode(tokenizer, NULL, buf_cstr(&out), out.len, TOKENIZE_ADDED, &r->out, &st) !=
        ST_OK)
        printf("cannot tokenize: %s\n", st.msg);
    if (number(d, "bad_token", 0) != 0)
        token_list_push(&r->out, 10000000);
    token_list_push(&r->out, eos);
    r->finish = BATON__V1__FINISH_REASON__FINISH_STOP;
    for (size_t i = 0; i < r->out.n; i++)
        for (size_t k = 0; k < m->sampling->n_stop_token_ids; k++)
            if (r->out.ids[i] == m->sampling->stop_token_ids[k])
                r->out.n = i + 1;
    if (r->out.n > m->sampling->max_new_tokens) {
        r->out.n = m->sampling->max_new_tokens;
        r->finish = BATON__V1__FINISH_REASON__FINISH_LENGTH;
    }
    buf_deinit(&out);
}

static bool answers(const char *where)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    bool ok;

    a.sin_port = htons((uint16_t)atoi(strrchr(where, ':') + 1));
    ok = connect(fd, (struct sockaddr *)&a, sizeof(a)) == 0;
    close(fd);
    return ok;
}

/* Which prefill worker would do it: the first that is there, with --check-prefill. */
static bool find_prefill(const Baton__V1__DecodeSubmit *m)
{
    size_t i = 0;

    while (options.check_prefill && i < m->n_prefill && !answers(m->prefill[i]))
        i++;
    snprintf(last_prefill, sizeof(last_prefill), "%s", i < m->n_prefill ? m->prefill[i] : "");
    return i < m->n_prefill;
}

/* Its cache has no end. */
static void tell_pages(const Baton__V1__DecodeSubmit *m)
{
    uint64_t h = 0;

    for (size_t i = 0; i + PREFIX_BLOCK_TOKENS <= m->n_token_ids; i += PREFIX_BLOCK_TOKENS) {
        h = prefix_block_hash(h, 0, m->token_ids + i);
        publisher_page(publisher, PUBLISH_PAGE_IN, PUBLISH_DEVICE, h);
    }
}

static void tell_load(void)
{
    struct publisher_figures f = {.steps = n_steps, .max_running = (uint32_t)options.max_running};

    for (const struct request *r = requests; r < requests + REQUESTS_MAX; r++)
        f.running += r->used;
    publisher_load(publisher, &f);
}

static void refuse(struct rpc_session *s, const Baton__V1__DecodeSubmit *m, const char *message,
                   char *blame)
{
    Baton__V1__DecodeReply reply = BATON__V1__DECODE_REPLY__INIT;
    Baton__V1__DecodeFailed failed = BATON__V1__DECODE_FAILED__INIT, *list[1] = {&failed};
    Baton__V1__Error error = BATON__V1__ERROR__INIT;
    struct status st;

    error.code = ST_UNAVAILABLE;
    error.message = (char *)message;
    failed.request_id = m->request_id;
    failed.error = &error;
    failed.prefill = blame;
    reply.n_failed = 1;
    reply.failed = list;
    printf("refuse %s\n", m->rid);
    rpc_session_send_message(s, &reply.base, &st);
}

/* Those that are not held, the one that comes included. */
static size_t n_running(void)
{
    size_t n = 0;

    for (const struct request *r = requests; r < requests + REQUESTS_MAX; r++)
        n += r->used && !r->held;
    return n - 1;
}

static void submit(struct rpc_session *s, const Baton__V1__DecodeSubmit *m)
{
    struct json_doc *doc = directive(m);
    const struct json *d = doc == NULL ? NULL : json_root(doc), *message, *flag;
    struct request *r = requests;

    if (n_submits++ < (uint64_t)options.fail_first) {
        refuse(s, m, "this worker is not well", NULL);
        json_free(doc);
        return;
    }
    if (m->n_prefill > 0 && strrchr(m->prefill[0], ':') != NULL &&
        atoi(strrchr(m->prefill[0], ':') + 1) == number(d, "fail_prefill", -1)) {
        refuse(s, m, "that prefill worker is not well", m->prefill[0]);
        json_free(doc);
        return;
    }
    if (!find_prefill(m) && options.check_prefill) {
        refuse(s, m, "no prefill worker answers", m->n_prefill > 0 ? m->prefill[0] : NULL);
        json_free(doc);
        return;
    }
    tell_pages(m);
    while (r < requests + REQUESTS_MAX && r->used)
        r++;
    if (r == requests + REQUESTS_MAX)
        exit(3);
    *r = (struct request){.used = true, .session = rpc_session_ref(s), .id = m->request_id};
    snprintf(r->rid, sizeof(r->rid), "%s", m->rid);
    r->batch = number(d, "batch", 1);
    r->interval_ms = number(d, "interval_ms", 0);
    r->fail_after = number(d, "fail_after", -1);
    r->hang_after = number(d, "hang_after", -1);
    r->die_after = number(d, "die_after", -1);
    r->code = number(d, "code", ST_UNAVAILABLE);
    message = d == NULL ? NULL : json_get(d, "message");
    snprintf(r->message, sizeof(r->message), "%s",
             message != NULL && message->type == JSON_STRING ? message->text : "mock failure");
    flag = d == NULL ? NULL : json_get(d, "die_flag");
    snprintf(r->die_flag, sizeof(r->die_flag), "%s",
             flag != NULL && flag->type == JSON_STRING ? flag->text : "");
    r->bad_logprobs = number(d, "bad_logprobs", 0);
    r->wants_logprobs = m->sampling->logprobs;
    r->wants_prompt_logprobs = m->sampling->prompt_logprobs;
    r->n_top = m->sampling->top_logprobs;
    for (size_t i = 0; r->wants_prompt_logprobs && i + m->n_emitted < m->n_token_ids; i++)
        token_list_push(&r->prompt, m->token_ids[i]);
    r->resumed = m->n_emitted > 0;
    r->at = m->n_emitted;
    fill_output(r, m, d);
    r->delay_us = (uint64_t)number(d, "delay_ms", 0) * 1000;
    r->order = n_submits;
    r->next_us = clock_now_us() + r->delay_us;
    r->held = options.queue && n_running() >= (size_t)options.max_running;
    printf("submit %s %zu %u\n", r->rid, m->n_token_ids, m->n_emitted);
    if (m->traceparent != NULL)
        printf("traceparent %s %s\n", r->rid, m->traceparent);
    json_free(doc);
}

/* ---- answering ------------------------------------------------------------------------------- */

static void free_logprobs(struct mock_logprobs *l)
{
    free(l->logprobs);
    free(l->top_logprobs);
    free(l->n_top);
    free(l->top_ids);
}

/* With --queue: the oldest that waits takes the place. */
static void promote(void)
{
    struct request *oldest = NULL;

    for (struct request *r = requests; r < requests + REQUESTS_MAX; r++)
        if (r->used && r->held && (oldest == NULL || r->order < oldest->order))
            oldest = r;
    if (oldest == NULL)
        return;
    oldest->held = false;
    oldest->next_us = clock_now_us() + oldest->delay_us;
}

static void drop(struct request *r)
{
    bool frees = options.queue && !r->held;

    free_logprobs(&r->logprobs);
    free_logprobs(&r->prompt_logprobs);
    token_list_deinit(&r->prompt);
    rpc_session_unref(r->session);
    token_list_deinit(&r->out);
    *r = (struct request){0};
    if (frees)
        promote();
}

static void send_failed(struct request *r)
{
    Baton__V1__DecodeReply reply = BATON__V1__DECODE_REPLY__INIT;
    Baton__V1__DecodeFailed failed = BATON__V1__DECODE_FAILED__INIT, *list[1] = {&failed};
    Baton__V1__Error error = BATON__V1__ERROR__INIT;
    struct status st;

    error.code = (uint32_t)r->code;
    error.message = r->message;
    failed.request_id = r->id;
    failed.error = &error;
    reply.n_failed = 1;
    reply.failed = list;
    rpc_session_send_message(r->session, &reply.base, &st);
    drop(r);
}

/* The batches of one turn: as a real worker, one message per session and step. */
static struct step {
    size_t n;
    struct request *requests[REQUESTS_MAX];
    Baton__V1__TokenBatch batches[REQUESTS_MAX];
    Baton__V1__HandoffStats stats[REQUESTS_MAX];
} step_now;

static void fill_stats(Baton__V1__HandoffStats *stats)
{
    baton__v1__handoff_stats__init(stats);
    stats->prefill = last_prefill;
    stats->decode = address;
    stats->transport = "mock";
    stats->has_kv_bytes = stats->has_kv_pages = stats->has_checksums_verified = 1;
    stats->has_cached_tokens = stats->has_prefill_us = stats->has_transfer_us = 1;
    stats->kv_bytes = 123456;
    stats->kv_pages = 2;
    stats->checksums_verified = 3;
    stats->cached_tokens = 1;
    stats->prefill_us = 1000;
    stats->transfer_us = 512; /* a microsecond a token */
}

/* Of tokens first .. first + n - 1: token k has k * step. */
static Baton__V1__Logprobs *fill_logprobs(struct mock_logprobs *l, const int32_t *ids, size_t first,
                                          size_t n, size_t n_top, float step, int64_t bad)
{
    int32_t vocab = tokenizer_vocab(tokenizer);

    free_logprobs(l);
    l->logprobs = calloc(n + 1, sizeof(*l->logprobs));
    l->n_top = calloc(n + 1, sizeof(*l->n_top));
    l->top_ids = calloc(n * n_top + 1, sizeof(*l->top_ids));
    l->top_logprobs = calloc(n * n_top + 1, sizeof(*l->top_logprobs));
    for (size_t i = 0; i < n; i++) {
        l->logprobs[i] = (float)(first + i) * step;
        l->n_top[i] = (uint32_t)n_top;
        for (size_t j = 0; j < n_top; j++) {
            l->top_ids[i * n_top + j] = bad == 3 ? vocab : (ids[first + i] + (int32_t)j) % vocab;
            l->top_logprobs[i * n_top + j] = l->logprobs[i] - (float)j;
        }
    }
    baton__v1__logprobs__init(&l->m);
    l->m.n_logprobs = l->m.n_n_top = n;
    l->m.n_logprobs -= bad == 2;
    l->m.logprobs = l->logprobs;
    l->m.n_top = l->n_top;
    l->m.n_top_ids = l->m.n_top_logprobs = n * n_top;
    l->m.top_ids = l->top_ids;
    l->m.top_logprobs = l->top_logprobs;
    return &l->m;
}

static void add_logprobs(struct request *r, Baton__V1__TokenBatch *batch, size_t first)
{
    if (r->wants_logprobs && r->bad_logprobs != 1)
        batch->logprobs = fill_logprobs(&r->logprobs, r->out.ids, first, batch->n_token_ids,
                                        r->n_top, -0.125f, r->bad_logprobs);
    if (r->wants_prompt_logprobs && r->bad_logprobs != 1)
        batch->prompt_logprobs =
            fill_logprobs(&r->prompt_logprobs, r->prompt.ids, 1, r->prompt.n - 1, r->n_top,
                          -0.0625f, r->bad_logprobs);
    r->wants_prompt_logprobs = false;
}

/* Steps are common to all requests, as an engine's are, with --step-ms. */
static uint64_t grid(uint64_t us)
{
    uint64_t step = (uint64_t)options.step_ms * 1000;

    return step == 0 ? us : (us + step / 2) / step * step;
}

static void add_tokens(struct request *r)
{
    Baton__V1__TokenBatch *batch = &step_now.batches[step_now.n];
    size_t n = r->out.n - r->at, limit = (size_t)r->batch;

    if (r->fail_after >= 0 && limit > (size_t)r->fail_after - r->at)
        limit = (size_t)r->fail_after - r->at;
    n = n < limit ? n : limit;
    baton__v1__token_batch__init(batch);
    batch->request_id = r->id;
    batch->n_token_ids = n;
    batch->token_ids = r->out.ids + r->at;
    add_logprobs(r, batch, r->at);
    r->at += n;
    if (r->at == r->out.n) {
        batch->has_finish = 1;
        batch->finish = r->finish;
    }
    if (!r->stats_sent) {
        fill_stats(&step_now.stats[step_now.n]);
        batch->stats = &step_now.stats[step_now.n];
        r->stats_sent = true;
    }
    r->next_us = r->interval_ms == 0 ? 0 : grid(clock_now_us() + (uint64_t)r->interval_ms * 1000);
    step_now.requests[step_now.n++] = r;
}

static void send_step(void)
{
    static Baton__V1__TokenBatch *list[REQUESTS_MAX];

    for (size_t i = 0; i < step_now.n; i++) {
        Baton__V1__DecodeReply reply = BATON__V1__DECODE_REPLY__INIT;
        struct rpc_session *session =
            step_now.requests[i] == NULL ? NULL : step_now.requests[i]->session;
        struct status st;

        if (session == NULL)
            continue; /* went with an earlier one */
        reply.batch = list;
        for (size_t k = i; k < step_now.n; k++)
            if (step_now.requests[k] != NULL && step_now.requests[k]->session == session)
                list[reply.n_batch++] = &step_now.batches[k];
        rpc_session_send_message(session, &reply.base, &st);
        for (size_t k = i; k < step_now.n; k++)
            if (step_now.requests[k] != NULL && step_now.requests[k]->session == session) {
                if (step_now.batches[k].has_finish)
                    drop(step_now.requests[k]);
                step_now.requests[k] = NULL;
            }
    }
    step_now.n = 0;
}

/* Whether this worker is the one that the directive means. */
static bool dies(const struct request *r)
{
    int fd;

    if (r->die_after < 0 || r->at < (size_t)r->die_after || r->resumed)
        return false;
    if (r->die_flag[0] == '\0')
        return true;
    fd = open(r->die_flag, O_CREAT | O_EXCL | O_WRONLY, 0600);
    if (fd >= 0)
        close(fd);
    return fd >= 0;
}

static void step(struct request *r)
{
    if (dies(r)) {
        fflush(stdout);
        kill(getpid(), SIGKILL);
    }
    if (r->fail_after >= 0 && r->at >= (size_t)r->fail_after)
        send_failed(r);
    else if (r->hang_after >= 0 && r->at >= (size_t)r->hang_after)
        r->next_us = UINT64_MAX;
    else
        add_tokens(r);
}

static void say_hello(struct rpc_session *s)
{
    Baton__V1__DecodeReply reply = BATON__V1__DECODE_REPLY__INIT;
    Baton__V1__Identity me = BATON__V1__IDENTITY__INIT;
    struct status st;

    me.role = "decode";
    me.incarnation = (uint64_t)getpid();
    me.protocol = BATON__V1__PROTOCOL__PROTOCOL_NOW;
    me.has_model_fingerprint = me.has_vocab_size = me.has_context_length = 1;
    me.model_fingerprint = 0x4d0cull;
    me.vocab_size = (uint32_t)tokenizer_vocab(tokenizer);
    me.context_length = (uint64_t)options.context_length;
    me.backend = "mock";
    reply.hello = &me;
    rpc_session_send_message(s, &reply.base, &st);
}

static void cancel(struct rpc_session *s, uint64_t id)
{
    for (struct request *r = requests; r < requests + REQUESTS_MAX; r++)
        if (r->used && r->session == s && r->id == id) {
            printf("cancel %s\n", r->rid);
            drop(r);
        }
}

static void handle(struct mock_msg *m)
{
    if (m->base.type == M_CLOSED) {
        printf("session closed\n");
        for (struct request *r = requests; r < requests + REQUESTS_MAX; r++)
            if (r->used && r->session == m->session)
                drop(r);
    } else if (m->request == NULL) {
        printf("unreadable message\n");
    } else if (m->request->hello != NULL) {
        printf("hello %s\n", m->request->hello->role);
        say_hello(m->session);
    } else {
        for (size_t i = 0; i < m->request->n_submit; i++)
            submit(m->session, m->request->submit[i]);
        for (size_t i = 0; i < m->request->n_cancel; i++)
            cancel(m->session, m->request->cancel[i]->request_id);
    }
    if (m->request != NULL)
        baton__v1__decode_request__free_unpacked(m->request, NULL);
    rpc_session_unref(m->session);
    free(m);
}

static void serve(void)
{
    for (;;) {
        uint64_t now, next;
        struct msg *m;

        while ((m = mailbox_pop(mailbox)) != NULL)
            handle((struct mock_msg *)m);
        fflush(stdout);       /* who has an answer finds in the log what was asked */
        now = clock_now_us(); /* after that: what has just come is due */
        next = now + 1000000;
        for (struct request *r = requests; r < requests + REQUESTS_MAX; r++) {
            if (r->used && !r->held && r->next_us <= now)
                step(r);
            if (r->used && !r->held && r->next_us < next)
                next = r->next_us;
        }
        n_steps += step_now.n > 0;
        send_step();
        tell_load();
        fflush(stdout);
        if (next > now)
            mailbox_wait(mailbox, (int)((next - now + 999) / 1000));
    }
}

static void who_am_i(void *arg, Baton__V1__Identity *me)
{
    (void)arg;
    baton__v1__identity__init(me);
    me->role = options.port > 0 ? "decode" : "prefill";
    me->incarnation = (uint64_t)getpid();
    me->protocol = BATON__V1__PROTOCOL__PROTOCOL_NOW;
}

static void listen_on(struct rpc *rpc, int64_t port, const struct rpc_method *methods, size_t n)
{
    struct rpc_server *server;
    struct status st;

    snprintf(address, sizeof(address), "127.0.0.1:%lld", (long long)port);
    if (rpc_server_start(rpc, address, methods, n, &server, &st) != ST_OK) {
        fprintf(stderr, "mock_decode: %s\n", st.msg);
        exit(1);
    }
    rpc_server_set_serving(server, 1);
}

int main(int argc, char **argv)
{
    static const struct flag flags[] = {
        {"tokenizer-path", FLAG_STRING, &options.tokenizer_path, .arg = "F", .help = "tokenizer"},
        {"port", FLAG_INT, &options.port, .arg = "N", .help = "Decode service; 0: none"},
        {"prefill-port", FLAG_INT, &options.prefill_port, .arg = "N", .help = "health; 0: none"},
        {"context-length", FLAG_INT, &options.context_length, .arg = "N", .help = "as told"},
        {"fail-first", FLAG_INT, &options.fail_first, .arg = "N", .help = "submits that fail"},
        {"tls-ca", FLAG_STRING, &options.tls_ca, .arg = "F", .help = "as a worker's"},
        {"tls-cert", FLAG_STRING, &options.tls_cert, .arg = "F", .help = "as a worker's"},
        {"tls-key", FLAG_STRING, &options.tls_key, .arg = "F", .help = "as a worker's"},
        {"max-running", FLAG_INT, &options.max_running, .arg = "N", .help = "as told; 0: not told"},
        {"queue", FLAG_BOOL, &options.queue, .help = "run no more than --max-running at once"},
        {"step-ms", FLAG_INT, &options.step_ms, .arg = "N",
         .help = "tokens come on this grid; 0: each request by its own clock"},
        {"check-prefill", FLAG_BOOL, &options.check_prefill,
         .help = "name the first prefill worker that takes a connection"},
        {NULL},
    };
    static struct rpc_method methods[3] = {{
        .path = "/baton.v1.Decode/Session",
        .on_open = on_open,
        .callbacks = {on_message, on_close},
        .arg = methods,
    }};
    struct publisher_config p = {.identity = who_am_i};
    struct rpc *rpc;
    struct status st;

    if (flags_parse(flags, argc, argv, NULL, NULL, &st) != ST_OK ||
        tokenizer_open(options.tokenizer_path, &tokenizer, &st) != ST_OK ||
        mailbox_new(&mailbox, &st) != ST_OK || rpc_start(&rpc, &st) != ST_OK ||
        rpc_use_tls(rpc, options.tls_ca, options.tls_cert, options.tls_key, &st) != ST_OK ||
        publisher_start(&p, &publisher, &st) != ST_OK) {
        fprintf(stderr, "mock_decode: %s\n", st.msg);
        return 1;
    }
    (void)prctl(PR_SET_PDEATHSIG, SIGKILL); /* a test that ends takes its mocks along */
    log_init("mock", LOG_WARN);
    methods[1] = publisher_method(publisher);
    methods[2] = (struct rpc_method){.path = "/baton.v1.Admin/FlushCache", .unary = on_flush};
    if (options.prefill_port > 0)
        listen_on(rpc, options.prefill_port, methods + 1, 2);
    if (options.port > 0)
        listen_on(rpc, options.port, methods, 3);
    printf("serving\n");
    serve();
    return 0;
}
