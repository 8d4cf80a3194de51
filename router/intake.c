#include "router/intake.h"

#include <stdlib.h>

#include "common/base/clock.h"
#include "router/routes.h"
#include "router/text_pool.h"

/* A request on its way to become a job. */
struct intake {
    struct text_work work; /* first: it is the message */
    const struct router *router;
    struct http_exchange *exchange; /* NULL: the client has gone. Router thread only */
    const struct job_format *format;
    intake_fn run;
    struct buf body;
    uint64_t begun_us, context_length;
    struct text_task task;
    struct chat_error err;
    bool ok;
};

static void intake_deinit(struct intake *in)
{
    text_task_deinit(&in->task);
    buf_deinit(&in->body);
}

static void work(struct text_work *w, struct text_scratch *scratch)
{
    struct intake *in = (struct intake *)w;

    in->ok = in->run(&in->task, in->router, in->body.data, in->body.len, in->context_length,
                     scratch, &in->err);
    buf_deinit(&in->body); /* it may be large and the answer long */
}

static void finish(struct router_thread *t, struct intake *in)
{
    char request_id[JOB_REQUEST_ID_MAX + 1];

    if (in->ok && in->format->at_once != NULL) {
        in->format->at_once(t, in->exchange, &in->task);
    } else if (in->ok) {
        job_name_request(in->exchange, in->task.params.rid, request_id);
        job_start(t, in->exchange, in->format, &in->task, request_id, in->begun_us);
    } else {
        job_refuse(t, in->exchange, &in->err);
    }
}

static void on_gone(void *arg)
{
    struct intake *in = arg;

    in->exchange = NULL; /* its message is still to come */
}

void intake_request(struct router_thread *t, struct http_exchange *x, struct buf *body,
                    intake_fn run, const struct job_format *format)
{
    struct intake in = {
        .work = {.base.type = RM_TEXT_DONE, .mailbox = t->mailbox, .run = work},
        .router = t->router,
        .exchange = x,
        .format = format,
        .run = run,
        .body = *body,
        .begun_us = clock_now_us(),
        .context_length = workers_context_length(t->workers),
    };
    struct intake *later;
    struct status st;

    *body = (struct buf){0};
    if (in.body.len <= INTAKE_INLINE_BYTES_MAX) {
        work(&in.work, &t->scratch);
        finish(t, &in);
        intake_deinit(&in);
        return;
    }
    later = malloc(sizeof(*later));
    if (later == NULL) {
        status_set(&st, ST_EXHAUSTED, "no memory for another request");
    } else {
        *later = in;
        text_pool_submit(t->router->text_pool, &later->work, &st);
    }
    if (st.code == ST_OK) {
        http_exchange_on_gone(x, on_gone, later);
        return;
    }
    free(later);
    intake_deinit(&in);
    reply_status(t, x, &st);
}

void intake_drop(struct msg *m)
{
    struct intake *in = (struct intake *)m;

    intake_deinit(in);
    free(in);
}

void intake_done(struct router_thread *t, struct msg *m)
{
    struct intake *in = (struct intake *)m;

    if (in->exchange != NULL && in->work.ran)
        finish(t, in);
    intake_drop(m);
}
