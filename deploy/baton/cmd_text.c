/*
 * baton encode: chat requests to prompts.
 */
#include <stdio.h>

#include "common/base/flags.h"
#include "common/text/chat.h"
#include "deploy/baton/commands.h"
#include "deploy/baton/jsonl.h"

struct encoder {
    const char *profile; /* a flag's word; "auto": what the line says */
    bool default_thinking;
    bool ranges;               /* also print where the real special tokens stand */
    struct chat_prompt prompt; /* its memory serves all lines */
};

/* The profile of a line: its own "profile", or the flag's, or what is usual for its kind. */
static bool choose_profile(const struct encoder *e, const struct json *line,
                           const struct json *request, enum chat_profile usual,
                           enum chat_profile *out)
{
    const struct json *own = json_get(request, "profile");

    if (own == NULL)
        own = json_get(line, "profile");
    *out = usual;
    if (own == NULL || own->type == JSON_NULL) {
        if (strcmp(e->profile, "auto") != 0)
            *out = strcmp(e->profile, "ga") == 0 ? CHAT_GA : CHAT_PREVIEW;
        return true;
    }
    *out = json_is(own, "ga") ? CHAT_GA : CHAT_PREVIEW;
    return json_is(own, "ga") || json_is(own, "preview");
}

static void append_prompt(const struct encoder *e, struct buf *out)
{
    const struct prompt *prompt = &e->prompt.prompt;

    buf_puts(out, "{\"prompt\": ");
    json_write_string(out, prompt->text.data, prompt->text.len);
    if (!e->ranges)
        return;
    buf_puts(out, ", \"special_ranges\": [");
    for (size_t i = 0; i < prompt->n_specials; i++) {
        const struct prompt_special *s = &prompt->specials[i];

        buf_printf(out, "%s[%zu, %zu]", i > 0 ? ", " : "", s->offset, s->offset + s->len);
    }
    buf_puts(out, "]");
}

static enum status_code encode_request(struct encoder *e, const struct json *request,
                                       enum chat_profile profile, struct buf *out,
                                       struct status *st)
{
    struct chat_error err;

    if (chat_encode(request, profile, &e->prompt.prompt, &err) != ST_OK)
        return status_set(st, ST_INVALID, "%s", err.message);
    append_prompt(e, out);
    buf_puts(out, "}");
    return status_ok(st);
}

static enum status_code encode_body(struct encoder *e, const struct json *body,
                                    enum chat_profile profile, struct buf *out, struct status *st)
{
    struct chat_options opt = {.profile = profile, .default_thinking = e->default_thinking};
    struct chat_error err;

    if (chat_request_render(body, &opt, &e->prompt, &err) != ST_OK)
        return status_set(st, ST_INVALID, "%s", err.message);
    append_prompt(e, out);
    buf_printf(out, ", \"start\": \"%s\", \"tools\": %s}", turn_start_name(e->prompt.start),
               e->prompt.tools ? "true" : "false");
    return status_ok(st);
}

static enum status_code encode_line(void *ctx, const struct json *line, struct buf *out,
                                    struct status *st)
{
    const struct json *request = json_get(line, "request"), *body = json_get(line, "body");
    enum chat_profile profile;

    if ((request == NULL) == (body == NULL))
        return status_set(st, ST_INVALID, "a line is {\"request\": ...} or {\"body\": ...}");
    if (!choose_profile(ctx, line, request, body != NULL ? CHAT_GA : CHAT_PREVIEW, &profile))
        return status_set(st, ST_INVALID, "profile must be \"preview\" or \"ga\"");
    return body != NULL ? encode_body(ctx, body, profile, out, st)
                        : encode_request(ctx, request, profile, out, st);
}

int cmd_encode(int argc, char **argv)
{
    struct encoder e = {.profile = "auto"};
    const char *thinking = "on";
    const struct flag table[] = {
        {.name = "effort-profile",
         .type = FLAG_CHOICE,
         .field = &e.profile,
         .choices = "auto|preview|ga",
         .help = "release of the format for lines without \"profile\"; auto: preview for a "
                 "request, ga for a body"},
        {.name = "default-thinking",
         .type = FLAG_CHOICE,
         .field = &thinking,
         .choices = "on|off",
         .help = "the mode of a body that says nothing about it"},
        {.name = "special-ranges",
         .type = FLAG_BOOL,
         .field = &e.ranges,
         .help = "also print \"special_ranges\": the byte ranges that are real special tokens, as "
                 "baton tokenize reads them"},
        {.name = NULL}};
    struct status st;
    size_t n_positional = 0;
    int rc;

    switch (flags_parse(table, argc, argv, &n_positional, NULL, &st)) {
    case ST_OK:
        break;
    case ST_CANCELLED:
        flags_help(
            table,
            "usage: baton encode [flags] < LINES\n\n"
            "Each line {\"request\": {messages, thinking_mode, ...}} or {\"body\": an OpenAI "
            "chat-completion body} is answered with {\"prompt\": ...}.");
        return 0;
    default:
        fprintf(stderr, "baton encode: %s\n", st.msg);
        return 2;
    }
    e.default_thinking = strcmp(thinking, "on") == 0;
    rc = jsonl_run(JSON_ALLOW_NAN | JSON_LAST_KEY_WINS, encode_line, &e);
    chat_prompt_deinit(&e.prompt);
    return rc;
}
