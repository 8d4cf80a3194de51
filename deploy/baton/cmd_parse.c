/*
 * baton parse: model output to reasoning, content and tool calls.
 */
#include <stdio.h>

#include "common/base/flags.h"
#include "common/text/parse.h"
#include "deploy/baton/commands.h"
#include "deploy/baton/jsonl.h"

/* What the events of one line add up to. */
struct answer {
    struct buf reasoning, content;
    struct buf calls;     /* the JSON list of finished call objects, without brackets */
    struct buf arguments; /* of the last call */
    bool in_call;
};

static void close_call(struct answer *a)
{
    if (!a->in_call)
        return;
    json_write_string(&a->calls, a->arguments.data, a->arguments.len);
    buf_puts(&a->calls, "}");
    a->arguments.len = 0;
    a->in_call = false;
}

static void on_event(void *ctx, const struct parse_event *event)
{
    struct answer *a = ctx;

    switch (event->kind) {
    case PARSE_REASONING:
        buf_append(&a->reasoning, event->text, event->len);
        break;
    case PARSE_CONTENT:
        buf_append(&a->content, event->text, event->len);
        break;
    case PARSE_CALL:
        close_call(a);
        buf_puts(&a->calls, event->call > 0 ? ", {\"name\": " : "{\"name\": ");
        json_write_string(&a->calls, event->text, event->len);
        buf_puts(&a->calls, ", \"arguments\": ");
        a->in_call = true;
        break;
    case PARSE_CALL_ARGUMENTS:
        buf_append(&a->arguments, event->text, event->len);
        break;
    case PARSE_CALL_END:
        break;
    }
}

static bool read_start(const struct json *line, enum turn_start *start)
{
    const struct json *v = json_get(line, "start"), *mode = json_get(line, "thinking_mode");

    *start = json_is(mode, "thinking") ? TURN_REASONING : TURN_CONTENT;
    if (v == NULL || v->type == JSON_NULL)
        return mode == NULL || json_is(mode, "thinking") || json_is(mode, "chat");
    for (int i = TURN_CONTENT; i <= TURN_TOOL_CALLS; i++)
        if (json_is(v, turn_start_name((enum turn_start)i))) {
            *start = (enum turn_start)i;
            return true;
        }
    return false;
}

/* Feeds "output", or each of "chunks". */
static bool push_output(struct parse *p, const struct json *line)
{
    const struct json *output = json_get(line, "output"), *chunks = json_get(line, "chunks");

    if (output != NULL && output->type == JSON_STRING) {
        parse_push(p, output->text, output->len);
        return true;
    }
    if (chunks == NULL || chunks->type != JSON_ARRAY)
        return false;
    for (uint32_t i = 0; i < chunks->len; i++) {
        if (chunks->items[i].type != JSON_STRING)
            return false;
        parse_push(p, chunks->items[i].text, chunks->items[i].len);
    }
    return true;
}

static void append_answer(struct buf *out, const struct answer *a, const char *finish)
{
    buf_puts(out, "{\"reasoning_content\": ");
    json_write_string(out, a->reasoning.data, a->reasoning.len);
    buf_puts(out, ", \"content\": ");
    json_write_string(out, a->content.data, a->content.len);
    buf_puts(out, ", \"tool_calls\": [");
    buf_append(out, a->calls.data, a->calls.len);
    buf_puts(out, "], \"finish_reason\": ");
    json_write_string(out, finish, strlen(finish));
    buf_puts(out, "}");
}

static enum status_code parse_line(void *ctx, const struct json *line, struct buf *out,
                                   struct status *st)
{
    const struct json *tools = json_get(line, "tools");
    const struct json *finish = json_get(line, "engine_finish");
    bool has_finish = finish != NULL && finish->type == JSON_STRING;
    struct parse_options opt = {.tools = tools == NULL || tools->type != JSON_FALSE};
    struct answer answer = {0};
    struct parse *p = NULL;

    (void)ctx;
    if (!read_start(line, &opt.start))
        return status_set(st, ST_INVALID,
                          "thinking_mode is \"chat\" or \"thinking\", start is \"reasoning\", "
                          "\"content\" or \"tool_calls\"");
    if (parse_new(&opt, on_event, &answer, &p, st) != ST_OK)
        return st->code;
    if (push_output(p, line)) {
        const char *reason = parse_finish(p, has_finish ? finish->text : "stop");

        close_call(&answer);
        append_answer(out, &answer, reason);
    } else {
        status_set(st, ST_INVALID,
                   "a line needs \"output\", a string, or \"chunks\", a list of "
                   "strings");
    }
    parse_free(p);
    buf_deinit(&answer.reasoning);
    buf_deinit(&answer.content);
    buf_deinit(&answer.calls);
    buf_deinit(&answer.arguments);
    return st->code;
}

int cmd_parse(int argc, char **argv)
{
    const struct flag table[] = {{.name = NULL}};
    struct status st;
    size_t n_positional = 0;

    switch (flags_parse(table, argc, argv, &n_positional, NULL, &st)) {
    case ST_OK:
        return jsonl_run(JSON_ALLOW_NAN | JSON_LAST_KEY_WINS, parse_line, NULL);
    case ST_CANCELLED:
        flags_help(
            table,
            "usage: baton parse < LINES\n\n"
            "Each line {\"thinking_mode\": \"chat\"|\"thinking\", \"start\", \"tools\", "
            "\"engine_finish\",\n\"output\": TEXT or \"chunks\": [TEXT, ...]} is answered "
            "with {\"reasoning_content\", \"content\",\n\"tool_calls\", \"finish_reason\"}.");
        return 0;
    default:
        fprintf(stderr, "baton parse: %s\n", st.msg);
        return 2;
    }
}
