/*
 * job_text: what the answers of OpenAI's chat and completion APIs have in common.
 */
#include <string.h>

#include "common/base/json.h"
#include "router/job.h"

void job_put_stream_tail(struct job *j, struct buf *out)
{
    struct chat_usage usage = job_usage(j);
    struct buf path = {0};

    if (j->include_usage)
        chat_sse_usage(&j->sse, &usage, out);
    if (j->wants_path) {
        job_put_path(j, &path);
        chat_sse_path(&j->sse, &path, out);
        buf_deinit(&path);
    }
    chat_sse_done(out);
}

void job_put_matched(const struct job_choice *c, struct buf *out)
{
    size_t n;
    const char *string = chat_answer_stop_string(&c->answer, &n);

    if (string != NULL)
        json_write_string(out, string, n);
    else if (c->answer.stop_id >= 0)
        buf_printf(out, "%d", c->answer.stop_id);
    else
        buf_puts(out, "null");
}

void job_put_logprobs(const struct job_choice *c, struct buf *out)
{
    if (c->logprobs == NULL)
        buf_puts(out, "null");
    else
        token_logprobs_write(c->logprobs, c->job->format->logprobs_style,
                             c->job->thread->router->tokenizer, out);
}

void job_put_head(const struct job *j, const char *object, struct buf *out)
{
    const char *model = j->thread->router->model_name;

    buf_printf(out, "{\"id\":\"%s\",\"object\":\"%s\",\"created\":%lld,\"model\":", j->id, object,
               (long long)j->created);
    json_write_string(out, model, strlen(model));
    buf_puts(out, ",\"choices\":[");
}

void job_put_tail(const struct job *j, struct buf *out)
{
    struct chat_usage usage = job_usage(j);

    buf_puts(out, "],\"usage\":");
    chat_usage_json(&usage, out);
    if (j->wants_path) {
        buf_puts(out, ",\"baton\":");
        job_put_path(j, out);
    }
    buf_puts(out, "}");
}
