#include "decode/routers.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/log.h"
#include "common/rpc/rpc_message.h"
#include "common/worker/worker.h"

/* New tokens of a request; protobuf-c points into these, so they stay put until the flush. */
struct emission {
    Baton__V1__TokenBatch batch;
    Baton__V1__HandoffStats stats;
    int32_t tokens[SEQ_DRAFTS_MAX + 1];
    struct logprobs logprobs; /* of tokens; its memory is kept for later steps */
    Baton__V1__Logprobs logprobs_message, prompt_message;
    const struct logprobs *prompt; /* the request's, which lives until the flush; NULL: not now */
};

struct failure {
    Baton__V1__DecodeFailed failed;
    Baton__V1__Error error;
    char message[sizeof(((struct status *)0)->msg)];
    char prefill[128]; /* "": none */
};

struct router {
    struct router *next;
    struct session_link *link;
    bool greeted;
    struct emission *emissions; /* [n_emissions] of [cap_emissions]; grown to the largest step */
    size_t n_emissions, cap_emissions;
    struct failure *failures;
    size_t n_failures, cap_failures;
};

struct router_list {
    struct worker *w;
    struct router *first;
    void **pointers; /* scratch of the flush: what repeated fields point to */
    size_t cap_pointers;
};

enum status_code router_list_new(struct worker *w, struct router_list **out, struct status *st)
{
    struct router_list *l = calloc(1, sizeof(*l));

    if (l == NULL)
        return status_set(st, ST_EXHAUSTED, "no memory for the list of routers");
    l->w = w;
    *out = l;
    return status_ok(st);
}

void router_list_free(struct router_list *l)
{
    if (l == NULL)
        return;
    free(l->pointers);
    free(l);
}

bool router_list_empty(const struct router_list *l)
{
    return l->first == NULL;
}

void router_list_open(struct router_list *l, struct session_link *link)
{
    struct router *r = calloc(1, sizeof(*r));

    if (r == NULL)
        abort();
    r->link = link;
    link->owner = r;
    r->next = l->first;
    l->first = r;
}

void router_list_hello(struct router_list *l, struct router *r, const Baton__V1__Identity *identity)
{
    Baton__V1__DecodeReply reply = BATON__V1__DECODE_REPLY__INIT;
    Baton__V1__Identity ours;
    struct status st;

    if (identity->protocol != BATON__V1__PROTOCOL__PROTOCOL_NOW) {
        status_set(&st, ST_INVALID,
                   "router speaks protocol %u, decode worker %d: update the older one",
                   identity->protocol, BATON__V1__PROTOCOL__PROTOCOL_NOW);
        log_error("router %s refused: %s", rpc_session_peer(r->link->session), st.msg);
        rpc_session_close(r->link->session, &st);
        return;
    }
    r->greeted = true;
    log_info("router %s connected", rpc_session_peer(r->link->session));
    worker_identity(l->w, &ours);
    reply.hello = &ours;
    if (rpc_session_send_message(r->link->session, &reply.base, &st) != ST_OK)
        log_debug("hello to a router dropped: %s", st.msg);
}

void router_list_closed(struct router_list *l, struct session_link *link)
{
    for (struct router **p = &l->first; *p != NULL; p = &(*p)->next) {
        struct router *r = *p;

        if (r->link != link)
            continue;
        *p = r->next;
        for (size_t i = 0; i < r->cap_emissions; i++)
            logprobs_deinit(&r->emissions[i].logprobs);
        free(r->emissions);
        free(r->failures);
        free(r);
        break;
    }
    session_link_free(link);
}

/* Room for one more element; the arrays reach the size of the largest step and stay there. */
static void *grow(void *array, size_t n, size_t *cap, size_t size)
{
    if (n < *cap)
        return array;
    *cap = *cap == 0 ? 16 : 2 * *cap;
    array = realloc(array, *cap * size);
    if (array == NULL)
        abort();
    memset((char *)array + n * size, 0, (*cap - n) * size);
    return array;
}

void router_emit(struct router *r, struct request *q, uint32_t n)
{
    const struct sequence *s = &q->seq;
    struct logprobs swapped;
    struct emission *e;

    r->emissions = grow(r->emissions, r->n_emissions, &r->cap_emissions, sizeof(*r->emissions));
    e = &r->emissions[r->n_emissions++];
    baton__v1__token_batch__init(&e->batch);
    e->batch.request_id = q->id;
    assert(n <= SEQ_DRAFTS_MAX + 1);
    memcpy(e->tokens, s->tokens + s->n_tokens - n, n * sizeof(*e->tokens));
    e->batch.n_token_ids = n;
    e->batch.has_finish = s->finish != SEQ_GOES_ON;
    e->batch.finish = s->finish == SEQ_STOP ? BATON__V1__FINISH_REASON__FINISH_STOP
                                            : BATON__V1__FINISH_REASON__FINISH_LENGTH;
    swapped = e->logprobs;
    e->logprobs = q->news;
    q->news = swapped;
    logprobs_clear(&q->news);
    e->stats.base.descriptor = NULL;
    e->prompt = NULL;
    if (!q->stats_sent) {
        e->stats = q->stats;
        e->prompt = q->sampling.prompt_logprobs ? &q->prompt_logprobs : NULL;
        q->stats_sent = true;
    }
}

void router_fail(struct router *r, uint64_t request_id, const struct status *error,
                 const char *prefill)
{
    struct failure *f;

    r->failures = grow(r->failures, r->n_failures, &r->cap_failures, sizeof(*r->failures));
    f = &r->failures[r->n_failures++];
    baton__v1__decode_failed__init(&f->failed);
    baton__v1__error__init(&f->error);
    f->failed.request_id = request_id;
    f->error.code = error->code;
    memcpy(f->message, error->msg, sizeof(f->message));
    snprintf(f->prefill, sizeof(f->prefill), "%s", prefill == NULL ? "" : prefill);
}

static void flush(struct router_list *l, struct router *r)
{
    Baton__V1__DecodeReply reply = BATON__V1__DECODE_REPLY__INIT;
    size_t n = r->n_emissions + r->n_failures;
    struct status st;

    while (l->cap_pointers < n)
        l->pointers = grow(l->pointers, l->cap_pointers, &l->cap_pointers, sizeof(*l->pointers));
    reply.n_batch = r->n_emissions;
    reply.batch = (Baton__V1__TokenBatch **)l->pointers;
    for (size_t i = 0; i < r->n_emissions; i++) {
        struct emission *e = &r->emissions[i];

        e->batch.token_ids = e->tokens;
        e->batch.stats = e->stats.base.descriptor != NULL ? &e->stats : NULL;
        if (e->logprobs.n > 0) {
            logprobs_write(&e->logprobs, &e->logprobs_message);
            e->batch.logprobs = &e->logprobs_message;
        }
        if (e->prompt != NULL) {
            logprobs_write(e->prompt, &e->prompt_message);
            e->batch.prompt_logprobs = &e->prompt_message;
        }
        reply.batch[i] = &e->batch;
    }
    reply.n_failed = r->n_failures;
    reply.failed = (Baton__V1__DecodeFailed **)l->pointers + r->n_emissions;
    for (size_t i = 0; i < r->n_failures; i++) {
        struct failure *f = &r->failures[i];

        f->error.message = f->message;
        f->failed.error = &f->error;
        f->failed.prefill = f->prefill[0] != '\0' ? f->prefill : NULL;
        reply.failed[i] = &f->failed;
    }
    r->n_emissions = r->n_failures = 0;
    if (rpc_session_send_message(r->link->session, &reply.base, &st) != ST_OK) {
        log_warn("router %s takes no tokens any more: %s", rpc_session_peer(r->link->session),
                 st.msg);
        rpc_session_close(r->link->session, &st);
    }
}

void router_list_flush(struct router_list *l)
{
    for (struct router *r = l->first; r != NULL; r = r->next)
        if (r->n_emissions + r->n_failures > 0)
            flush(l, r);
}
