#include "router/routes.h"

#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <time.h>

#include "router/api_error.h"
#include "router/request_note.h"

struct route {
    const char *path;
    bool prefix; /* path is the beginning: "/v1/models/" */
    unsigned methods;
    enum { FOR_ALL, FOR_KEYS } who; /* FOR_ALL: without a key too */
    unsigned admin;                 /* methods that need an admin's key */
    void (*answer)(struct router_thread *t, struct http_exchange *x);
};

static const struct route table[] = {
    {"/v1/chat/completions", false, HTTP_POST, FOR_KEYS, 0, api_chat},
    {"/v1/completions", false, HTTP_POST, FOR_KEYS, 0, api_completions},
    {"/v1/responses", false, HTTP_POST, FOR_KEYS, 0, api_responses},
    {"/v1/responses/", true, HTTP_GET | HTTP_POST | HTTP_DELETE, FOR_KEYS, 0, api_response},
    {"/v1/messages", false, HTTP_POST, FOR_KEYS, 0, api_messages},
    {"/v1/messages/count_tokens", false, HTTP_POST, FOR_KEYS, 0, api_count_tokens},
    {"/generate", false, HTTP_POST, FOR_KEYS, 0, api_generate},
    {"/abort_request", false, HTTP_POST, FOR_KEYS, HTTP_POST, api_abort_request},
    {"/flush_cache", false, HTTP_GET | HTTP_POST, FOR_KEYS, HTTP_GET | HTTP_POST, api_flush_cache},
    {"/reset_prefix_cache", false, HTTP_POST, FOR_KEYS, HTTP_POST, api_flush_cache}, /* vLLM's */
    {"/tokenize", false, HTTP_POST, FOR_KEYS, 0, api_tokenize},
    {"/v1/tokenize", false, HTTP_POST, FOR_KEYS, 0, api_tokenize},
    {"/detokenize", false, HTTP_POST, FOR_KEYS, 0, api_detokenize},
    {"/v1/detokenize", false, HTTP_POST, FOR_KEYS, 0, api_detokenize},
    {"/health_generate", false, HTTP_GET, FOR_KEYS, 0, api_health_generate},
    {"/model_info", false, HTTP_GET | HTTP_HEAD, FOR_KEYS, 0, api_model_info},
    {"/get_model_info", false, HTTP_GET | HTTP_HEAD, FOR_KEYS, 0, api_model_info},
    {"/server_info", false, HTTP_GET | HTTP_HEAD, FOR_KEYS, 0, api_server_info},
    {"/get_server_info", false, HTTP_GET | HTTP_HEAD, FOR_KEYS, 0, api_server_info},
    {"/v1/models", false, HTTP_GET | HTTP_HEAD, FOR_KEYS, 0, api_models},
    {"/v1/models/", true, HTTP_GET | HTTP_HEAD, FOR_KEYS, 0, api_models},
    {"/health", false, HTTP_GET | HTTP_HEAD, FOR_ALL, 0, api_health},
    {"/ready", false, HTTP_GET | HTTP_HEAD, FOR_ALL, 0, api_ready},
    {"/metrics", false, HTTP_GET | HTTP_HEAD, FOR_ALL, 0, api_metrics},
    {"/v1/loads", false, HTTP_GET | HTTP_HEAD, FOR_KEYS, 0, api_loads},
    {"/workers", false, HTTP_GET | HTTP_HEAD | HTTP_POST, FOR_KEYS, HTTP_POST | HTTP_DELETE,
     api_workers},
    {"/workers/", true, HTTP_GET | HTTP_POST | HTTP_DELETE, FOR_KEYS, HTTP_POST | HTTP_DELETE,
     api_worker},
};

void reply_json(struct router_thread *t, struct http_exchange *x, int http_status,
                const struct buf *body)
{
    router_metrics_count_reply(t->router->metrics, http_status);
    http_reply(x, http_status, "application/json", body->data, body->len);
}

/* Anthropic's clients have their own shape of errors, whatever they are about. */
static bool is_anthropic(struct http_exchange *x)
{
    static const char path[] = "/v1/messages";

    return strncmp(http_exchange_request(x)->path.data, path, sizeof(path) - 1) == 0;
}

void reply_request_id(struct http_exchange *x, const char *request_id)
{
    http_reply_header(x, "x-request-id", request_id);
    if (is_anthropic(x))
        http_reply_header(x, "request-id", request_id);
}

static void put_error(struct http_exchange *x, int http_status, const char *param, const char *code,
                      const char *message, struct buf *body)
{
    if (is_anthropic(x))
        api_error_anthropic_json(body, http_status, request_note(x)->request_id, message);
    else
        api_error_json(body, http_status, param, code, message);
}

void reply_busy(struct router_thread *t, struct http_exchange *x, unsigned retry_s,
                const char *message)
{
    struct buf body = {0};
    char seconds[16];

    snprintf(seconds, sizeof(seconds), "%u", retry_s);
    http_reply_header(x, "retry-after", seconds);
    put_error(x, 429, NULL, "rate_limit_exceeded", message, &body);
    reply_json(t, x, 429, &body);
    buf_deinit(&body);
}

void reply_error(struct router_thread *t, struct http_exchange *x, int http_status,
                 const char *param, const char *code, const char *message)
{
    struct buf body = {0};

    put_error(x, http_status, param, code, message, &body);
    if (http_status == 429 || http_status == 503)
        http_reply_header(x, "retry-after", "1");
    reply_json(t, x, http_status, &body);
    buf_deinit(&body);
}

void reply_status(struct router_thread *t, struct http_exchange *x, const struct status *st)
{
    reply_error(t, x, status_http(st->code), NULL, NULL, st->msg);
}

static void refuse_method(struct router_thread *t, struct http_exchange *x, unsigned allowed)
{
    static const struct {
        unsigned bit;
        const char *name;
    } names[] = {{HTTP_GET, "GET"},
                 {HTTP_HEAD, "HEAD"},
                 {HTTP_POST, "POST"},
                 {HTTP_DELETE, "DELETE"},
                 {HTTP_OPTIONS, "OPTIONS"}};
    char allow[64] = "";
    size_t n = 0;

    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
        if (allowed & names[i].bit)
            n += (size_t)snprintf(allow + n, sizeof(allow) - n, "%s%s", n == 0 ? "" : ", ",
                                  names[i].name);
    http_reply_header(x, "allow", allow);
    if (http_exchange_request(x)->method == HTTP_OPTIONS)
        http_reply(x, 204, NULL, NULL, 0);
    else
        reply_error(t, x, 405, NULL, "method_not_allowed", "this path does not take that method");
}

/* "Authorization: Bearer KEY", or Anthropic's "x-api-key: KEY". */
static const char *given_key(const struct http_request *r, size_t *len)
{
    static const char bearer[] = "bearer ";
    const char *v = http_request_header(r, "authorization", len);

    if (v != NULL && *len > sizeof(bearer) - 1 && strncasecmp(v, bearer, sizeof(bearer) - 1) == 0) {
        *len -= sizeof(bearer) - 1;
        return v + sizeof(bearer) - 1;
    }
    return http_request_header(r, "x-api-key", len);
}

/* Whether it may; else it is answered. */
static bool authorize(struct router_thread *t, struct http_exchange *x, const struct route *route)
{
    const struct http_request *r = http_exchange_request(x);
    bool admin = (route->admin & r->method) != 0;
    size_t len = 0;
    const char *key = given_key(r, &len);
    enum key_verdict v = keys_check(t->router->keys, key, len, admin, &request_note(x)->who);

    if (v == KEY_OK || route->who == FOR_ALL)
        return true;
    if (v == KEY_NOT_ADMIN) {
        reply_error(t, x, 403, NULL, "not_allowed", "this needs an administrator's key");
        return false;
    }
    http_reply_header(x, "www-authenticate", "Bearer");
    reply_error(t, x, 401, NULL, "invalid_api_key",
                v == KEY_MISSING ? "an API key is needed: Authorization: Bearer KEY"
                                 : "the API key is not known here");
    return false;
}

static uint64_t unix_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_REALTIME, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static void begin_note(struct router_thread *t, struct http_exchange *x)
{
    struct request_note *n = request_note(x);
    size_t len = 0;
    const char *parent = http_request_header(http_exchange_request(x), "traceparent", &len);

    n->who.name[0] = '-';
    if (parent == NULL && t->router->traces == NULL && t->access.fd < 0)
        return; /* nobody would see it */
    trace_begin(&n->trace, parent, len, t->router->traces != NULL);
    n->unix_ns = unix_ns();
}

void routes_ended(struct router_thread *t, struct http_exchange *x, int status, uint64_t bytes,
                  uint64_t us)
{
    const struct request_note *n = request_note(x);
    const struct trace_attribute attributes[] = {
        {"http.response.status_code", NULL, status},
        {"url.path", http_exchange_request(x)->path.data, 0},
        {"baton.request_id", n->request_id, 0},
        {"gen_ai.usage.input_tokens", NULL, n->prompt_tokens},
        {"gen_ai.usage.output_tokens", NULL, n->completion_tokens},
        {"baton.cached_tokens", NULL, n->cached_tokens},
        {"baton.ttft_us", NULL, n->ttft_us},
    };

    access_log_write(&t->access, x, status, bytes, us);
    if (t->router->traces != NULL && n->prompt_tokens > 0)
        trace_export(t->router->traces, &n->trace, "request", n->unix_ns, n->unix_ns + us * 1000,
                     status >= 500 ? http_reason(status) : NULL, attributes,
                     sizeof(attributes) / sizeof(attributes[0]));
}

void routes_dispatch(struct router_thread *t, struct http_exchange *x)
{
    const struct http_request *r = http_exchange_request(x);
    const struct route *found = NULL;

    for (size_t i = 0; i < sizeof(table) / sizeof(table[0]) && found == NULL; i++)
        if (table[i].prefix ? strncmp(r->path.data, table[i].path, strlen(table[i].path)) == 0
                            : strcmp(r->path.data, table[i].path) == 0)
            found = &table[i];
    begin_note(t, x);
    if (found == NULL)
        reply_error(t, x, 404, NULL, NULL, "there is nothing at this path");
    else if ((found->methods & r->method) == 0)
        refuse_method(t, x, found->methods | HTTP_OPTIONS);
    else if (!authorize(t, x, found))
        ; /* answered */
    else if (http_exchange_is_late(x) && r->method == HTTP_POST && (found->admin & HTTP_POST) == 0)
        reply_error(t, x, 503, NULL, "shutting_down", "this router is shutting down");
    else
        found->answer(t, x);
}
