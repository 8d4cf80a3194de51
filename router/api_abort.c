/*
 * api_abort: POST /abort_request, as SGLang has it: {"rid": NAME} or {"abort_all": true}. It
 * reaches the requests of every router thread; that there are none is no error.
 */
#include <stdlib.h>
#include <string.h>

#include "common/base/json.h"
#include "router/fields.h"
#include "router/job.h"
#include "router/routes.h"

struct wanted {
    const char *rid;
    bool all;
};

static struct msg *make(const void *arg)
{
    const struct wanted *w = arg;
    struct msg_abort *m = calloc(1, sizeof(*m));

    if (m == NULL)
        return NULL;
    m->base.type = RM_ABORT;
    m->all = w->all;
    if (w->rid != NULL)
        strncpy(m->request_id, w->rid, sizeof(m->request_id) - 1);
    return &m->base;
}

static bool read_wanted(const struct json *body, struct wanted *w, struct chat_error *err)
{
    static const struct field rows[] = {
        {"rid", FIELD_STRING, offsetof(struct wanted, rid), .max = MSG_REQUEST_ID_MAX},
        {"abort_all", FIELD_BOOL, offsetof(struct wanted, all)},
        FIELD_NO_EFFECT_ROW("abort_message"),
        FIELD_NEUTRAL_ROW("finished_reason", NULL),
        FIELD_NEUTRAL_ROW("http_worker_ipc", NULL),
        FIELD_NEUTRAL_ROW("weight_versions", "[]"),
        {NULL},
    };
    static const struct field *const tables[] = {rows, NULL};

    if (!fields_read(tables, body, w, err))
        return false;
    if (!w->all && (w->rid == NULL || *w->rid == '\0'))
        return field_fail(err, "rid", "missing_required_parameter", "rid or abort_all is needed");
    return true;
}

void api_abort_request(struct router_thread *t, struct http_exchange *x)
{
    const struct http_request *r = http_exchange_request(x);
    struct chat_error err = {0};
    struct wanted w = {NULL, false};
    struct json_doc *doc = NULL;
    struct buf body = {0};
    struct status st;

    if (json_parse(r->body.data, r->body.len, CHAT_JSON_FLAGS, &doc, &st) != ST_OK) {
        reply_error(t, x, 400, NULL, "invalid_json", st.msg);
        return;
    }
    if (!read_wanted(json_root(doc), &w, &err)) {
        reply_error(t, x, err.status, err.param, err.code, err.message);
    } else if (registry_broadcast(t->router->registry, make, &w, &st) != ST_OK) {
        reply_status(t, x, &st);
    } else {
        buf_puts(&body, "{\"success\":true}");
        reply_json(t, x, 200, &body);
        buf_deinit(&body);
    }
    json_free(doc);
}

void api_abort_arrived(struct router_thread *t, const struct msg *m)
{
    const struct msg_abort *a = (const struct msg_abort *)m;

    jobs_abort(t, a->all ? NULL : a->request_id);
}
