#include "router/routes.h"

#include <stdio.h>
#include <string.h>

#include "router/api_error.h"

struct route {
    const char *path;
    bool prefix; /* path is the beginning: "/v1/models/" */
    unsigned methods;
    void (*answer)(struct router_thread *t, struct http_exchange *x);
};

static const struct route table[] = {
    {"/v1/chat/completions", false, HTTP_POST, api_chat},
    {"/v1/completions", false, HTTP_POST, api_completions},
    {"/tokenize", false, HTTP_POST, api_tokenize},
    {"/v1/tokenize", false, HTTP_POST, api_tokenize},
    {"/detokenize", false, HTTP_POST, api_detokenize},
    {"/v1/detokenize", false, HTTP_POST, api_detokenize},
    {"/health_generate", false, HTTP_GET, api_health_generate},
    {"/model_info", false, HTTP_GET | HTTP_HEAD, api_model_info},
    {"/get_model_info", false, HTTP_GET | HTTP_HEAD, api_model_info},
    {"/v1/models", false, HTTP_GET | HTTP_HEAD, api_models},
    {"/v1/models/", true, HTTP_GET | HTTP_HEAD, api_models},
    {"/health", false, HTTP_GET | HTTP_HEAD, api_health},
    {"/ready", false, HTTP_GET | HTTP_HEAD, api_ready},
    {"/metrics", false, HTTP_GET | HTTP_HEAD, api_metrics},
    {"/workers", false, HTTP_GET | HTTP_HEAD | HTTP_POST, api_workers},
    {"/workers/", true, HTTP_GET | HTTP_POST | HTTP_DELETE, api_worker},
};

void reply_json(struct router_thread *t, struct http_exchange *x, int http_status,
                const struct buf *body)
{
    router_metrics_count_reply(t->router->metrics, http_status);
    http_reply(x, http_status, "application/json", body->data, body->len);
}

void reply_error(struct router_thread *t, struct http_exchange *x, int http_status,
                 const char *param, const char *code, const char *message)
{
    struct buf body = {0};

    api_error_json(&body, http_status, param, code, message);
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

void routes_dispatch(struct router_thread *t, struct http_exchange *x)
{
    const struct http_request *r = http_exchange_request(x);
    const struct route *found = NULL;

    for (size_t i = 0; i < sizeof(table) / sizeof(table[0]) && found == NULL; i++)
        if (table[i].prefix ? strncmp(r->path.data, table[i].path, strlen(table[i].path)) == 0
                            : strcmp(r->path.data, table[i].path) == 0)
            found = &table[i];
    if (found == NULL)
        reply_error(t, x, 404, NULL, NULL, "there is nothing at this path");
    else if ((found->methods & r->method) == 0)
        refuse_method(t, x, found->methods | HTTP_OPTIONS);
    else
        found->answer(t, x);
}
