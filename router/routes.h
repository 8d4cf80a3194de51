/*
 * routes: from method and path to the function that answers.
 *
 * Threads   the router thread.
 */
#ifndef BATON_ROUTER_ROUTES_H
#define BATON_ROUTER_ROUTES_H

#include "router/router_thread.h"

/** Notes how an exchange ended: access log, span. */
void routes_ended(struct router_thread *t, struct http_exchange *x, int status, uint64_t bytes,
                  uint64_t us);

/** Answers a request now, or makes sure that it is answered later. */
void routes_dispatch(struct router_thread *t, struct http_exchange *x);

/* ---- what APIs answer with ------------------------------------------------------------------- */

/** The JSON in body; counts it. */
void reply_json(struct router_thread *t, struct http_exchange *x, int http_status,
                const struct buf *body);

/** Adds the header that names the request, as the path's clients look for it. */
void reply_request_id(struct http_exchange *x, const char *request_id);

/** An error in OpenAI's shape, or in Anthropic's on its paths; 429 and 503 carry Retry-After. */
void reply_error(struct router_thread *t, struct http_exchange *x, int http_status,
                 const char *param, const char *code, const char *message);

/** 429 with Retry-After. */
void reply_busy(struct router_thread *t, struct http_exchange *x, unsigned retry_s,
                const char *message);

/** The same for a status. */
void reply_status(struct router_thread *t, struct http_exchange *x, const struct status *st);

/* ---- APIs: each answers a complete request --------------------------------------------------- */

void api_chat(struct router_thread *t, struct http_exchange *x);        /* /v1/chat/completions */
void api_completions(struct router_thread *t, struct http_exchange *x); /* /v1/completions */
void api_generate(struct router_thread *t, struct http_exchange *x);    /* /generate */
void api_messages(struct router_thread *t, struct http_exchange *x);    /* /v1/messages */
void api_count_tokens(struct router_thread *t, struct http_exchange *x);
void api_responses(struct router_thread *t, struct http_exchange *x); /* /v1/responses */
void api_response(struct router_thread *t, struct http_exchange *x);  /* /v1/responses/ID: none */
void api_abort_request(struct router_thread *t, struct http_exchange *x);
void api_flush_cache(struct router_thread *t, struct http_exchange *x);
void api_tokenize(struct router_thread *t, struct http_exchange *x);
void api_detokenize(struct router_thread *t, struct http_exchange *x);
void api_health_generate(struct router_thread *t,
                         struct http_exchange *x); /* one token, all the way */
void api_model_info(struct router_thread *t, struct http_exchange *x);
void api_server_info(struct router_thread *t, struct http_exchange *x);
void api_models(struct router_thread *t, struct http_exchange *x);  /* /v1/models, /v1/models/ID */
void api_health(struct router_thread *t, struct http_exchange *x);  /* the process lives */
void api_ready(struct router_thread *t, struct http_exchange *x);   /* it can serve */
void api_metrics(struct router_thread *t, struct http_exchange *x); /* Prometheus text */
void api_workers(struct router_thread *t, struct http_exchange *x); /* list, add */
void api_worker(struct router_thread *t, struct http_exchange *x);  /* /workers/ADDRESS[/drain] */

void api_loads(struct router_thread *t, struct http_exchange *x); /* /v1/loads */

/* What comes back of them: the mailbox's messages. */
void api_abort_arrived(struct router_thread *t, const struct msg *m);
void api_flush_arrived(struct router_thread *t, struct msg *m); /* frees m */
void api_flush_drop(struct msg *m);                             /* nobody handles it any more */

/** Appends the workers' metrics, as this thread sees them. */
void api_workers_metrics(struct router_thread *t, struct buf *out);

#endif
