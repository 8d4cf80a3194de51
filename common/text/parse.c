#include "common/text/parse.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "common/text/parse_call.h"
#include "common/text/parse_scan.h"

enum state {
    REASONING,
    CONTENT,
    BETWEEN, /* in a block, between invokes */
    INVOKE,  /* in an invoke, between parameters */
    HEADER,  /* after <｜DSML｜invoke or <｜DSML｜parameter */
    VALUE,   /* in a parameter's value */
    OVER     /* what comes is ignored */
};

/* Where in a header: blanks, name=", NAME", anything up to '>'. */
enum header { HEADER_BLANKS, HEADER_ATTRIBUTE, HEADER_NAME, HEADER_TAIL };

struct parse {
    parse_emit_fn emit;
    void *ctx;
    bool tools;
    bool may_open; /* at the very first of the output, where <think> counts */
    bool final;    /* no more text comes */
    enum state state;
    uint32_t n_calls; /* announced */

    enum header header;
    bool header_is_parameter;
    size_t attribute_len; /* HEADER_ATTRIBUTE: how much of name=" has come */
    struct buf raw;       /* the header's text as long as it may be junk */
    struct buf name;      /* of an invoke; a parameter's is call.key */
    struct buf tail;      /* HEADER_TAIL: its text */
    struct parse_call call;

    struct buf input; /* held text and the chunk after it, when there was held text */
    size_t n_held;    /* held text stands at the front of input */
};

static const struct parse_word name_attribute = {"name=\"", 6};

/* ---- events ---- */

static void emit(struct parse *p, enum parse_kind kind, const char *text, size_t len)
{
    struct parse_event event = {.kind = kind, .text = text, .len = len};

    if (kind != PARSE_REASONING && kind != PARSE_CONTENT)
        event.call = p->n_calls - 1;
    p->emit(p->ctx, &event);
}

static void emit_text(struct parse *p, const char *from, const char *to)
{
    if (to > from)
        emit(p, p->state == REASONING ? PARSE_REASONING : PARSE_CONTENT, from, (size_t)(to - from));
}

static void emit_arguments(struct parse *p)
{
    if (p->call.out.len > 0)
        emit(p, PARSE_CALL_ARGUMENTS, p->call.out.data, p->call.out.len);
    p->call.out.len = 0;
}

static void begin_call(struct parse *p)
{
    bool named = p->name.len > 0;

    parse_call_begin(&p->call, named);
    if (named) {
        p->n_calls++;
        emit(p, PARSE_CALL, p->name.data, p->name.len);
    }
}

static void end_call(struct parse *p)
{
    if (!p->call.active)
        return;
    parse_call_end(&p->call);
    emit_arguments(p);
    emit(p, PARSE_CALL_END, "", 0);
    p->call.active = false;
}

/* ---- reasoning and content ---- */

/* Up to two newlines before a block belong to it. */
static const char *before_newlines(const struct parse *p, const char *run, const char *at)
{
    for (int i = 0; i < 2 && p->tools && at > run && at[-1] == '\n'; i++)
        at--;
    return at;
}

static void enter_header(struct parse *p, bool is_parameter, enum header header)
{
    const struct parse_word *word = is_parameter ? &parse_param_open : &parse_invoke_open;

    p->state = HEADER;
    p->header = header;
    p->header_is_parameter = is_parameter;
    p->attribute_len = 0;
    p->name.len = p->call.key.len = p->tail.len = p->raw.len = 0;
    buf_append(&p->raw, word->text, word->len);
}

/* The first of <think>: drops it and begins reasoning. Returns where to go on, NULL to wait. */
static const char *step_start(struct parse *p, const char *at, const char *end)
{
    enum parse_match match = parse_match(at, end, &parse_think);

    if (match == PARSE_PART && !p->final)
        return NULL;
    p->may_open = false;
    if (match != PARSE_FULL)
        return at;
    p->state = REASONING;
    return at + parse_think.len;
}

/* At a place q where a marker may begin. Returns what stands there, and acts on a whole marker: run
 * moves behind it, and the text before it has been emitted. */
static enum parse_match take_marker(struct parse *p, const char **run, const char *q,
                                    const char *end)
{
    enum parse_match think = parse_match(q, end, &parse_think_end);
    enum parse_match eos = parse_match(q, end, &parse_eos), opener = PARSE_NO;
    enum parse_opener kind;
    size_t len;

    if (think == PARSE_FULL) {
        emit_text(p, *run, q);
        p->state = CONTENT;
        *run = q + parse_think_end.len;
        return PARSE_FULL;
    }
    if (eos == PARSE_FULL) {
        emit_text(p, *run, q);
        p->state = OVER;
        *run = end;
        return PARSE_FULL;
    }
    if (p->tools)
        opener = parse_match_opener(q, end, &kind, &len);
    if (opener == PARSE_FULL) {
        emit_text(p, *run, before_newlines(p, *run, q));
        *run = q + len;
        if (kind == PARSE_OPENS_BLOCK)
            p->state = BETWEEN;
        else
            enter_header(p, false, HEADER_NAME);
        return PARSE_FULL;
    }
    return think == PARSE_PART || eos == PARSE_PART || opener == PARSE_PART ? PARSE_PART : PARSE_NO;
}

/* At the end of the output a piece of an opener that shows its DSML token never reaches a client.
 */
static bool is_cut_opener(const struct parse *p, const char *q, const char *end)
{
    return p->tools && parse_match(q, end, &parse_dsml_open) == PARSE_FULL &&
           (parse_match(q, end, &parse_block_open) == PARSE_PART ||
            parse_match(q, end, &parse_invoke_named) == PARSE_PART);
}

/* Returns up to where the text is settled. */
static const char *step_text(struct parse *p, const char *at, const char *end)
{
    const char *run = at; /* text from here on is not emitted */
    const char *q = at;

    while ((q = parse_find(q, end)) < end) {
        enum parse_match match = take_marker(p, &run, q, end);

        if (match == PARSE_FULL && p->state != REASONING && p->state != CONTENT)
            return run;
        if (match == PARSE_FULL) {
            q = run;
        } else if (match == PARSE_NO || (p->final && !is_cut_opener(p, q, end))) {
            q++;
        } else {
            q = before_newlines(p, run, q);
            emit_text(p, run, q);
            return p->final ? end : q;
        }
    }
    q = p->final ? end : before_newlines(p, run, end);
    emit_text(p, run, q);
    return q;
}

/* ---- in a block ---- */

static const char *step_between(struct parse *p, const char *at, const char *end)
{
    const char *q = at;

    while ((q = parse_find(q, end)) < end) {
        enum parse_match invoke = parse_match(q, end, &parse_invoke_open);
        enum parse_match close = parse_match(q, end, &parse_block_close);
        enum parse_match eos = parse_match(q, end, &parse_eos);

        if (invoke == PARSE_FULL) {
            enter_header(p, false, HEADER_BLANKS);
            return q + parse_invoke_open.len;
        }
        if (close == PARSE_FULL || eos == PARSE_FULL) {
            p->state = OVER;
            return end;
        }
        if (invoke == PARSE_PART || close == PARSE_PART || eos == PARSE_PART)
            return q;
        q++;
    }
    return end;
}

/* The tags that count in an invoke. */
static const char *step_invoke(struct parse *p, const char *at, const char *end)
{
    const char *q = at;

    while ((q = parse_find(q, end)) < end) {
        enum parse_match parameter = parse_match(q, end, &parse_param_open);
        enum parse_match close = parse_match(q, end, &parse_invoke_close);
        enum parse_match invoke = parse_match(q, end, &parse_invoke_open);
        enum parse_match block = parse_match(q, end, &parse_block_close);
        enum parse_match eos = parse_match(q, end, &parse_eos);

        if (parameter == PARSE_FULL) {
            parse_call_junk(&p->call, at, (size_t)(q - at));
            enter_header(p, true, HEADER_BLANKS);
            return q + parse_param_open.len;
        }
        if (close == PARSE_FULL || invoke == PARSE_FULL || block == PARSE_FULL) {
            parse_call_junk(&p->call, at, (size_t)(q - at));
            end_call(p);
            p->state = BETWEEN; /* which acts on the other two */
            return close == PARSE_FULL ? q + parse_invoke_close.len : q;
        }
        if (eos == PARSE_FULL) {
            p->state = OVER;
            return end;
        }
        if (parameter == PARSE_PART || close == PARSE_PART || invoke == PARSE_PART ||
            block == PARSE_PART || eos == PARSE_PART)
            break;
        q++;
    }
    parse_call_junk(&p->call, at, (size_t)(q - at));
    return q;
}

/* ---- headers ---- */

/* string="false" is JSON; anything else, and its absence, is a string. */
static bool says_string(const struct buf *tail)
{
    static const char attribute[] = "string=\"", no[] = "false\"";
    const char *at, *end;

    if (tail->len == 0)
        return true;
    end = tail->data + tail->len;
    at = memmem(tail->data, tail->len, attribute, sizeof(attribute) - 1);
    if (at == NULL)
        return true;
    at += sizeof(attribute) - 1;
    return (size_t)(end - at) < sizeof(no) - 1 || memcmp(at, no, sizeof(no) - 1) != 0;
}

static void finish_header(struct parse *p)
{
    if (p->header_is_parameter) {
        parse_call_parameter(&p->call, says_string(&p->tail));
        p->state = VALUE;
    } else {
        begin_call(p);
        p->state = INVOKE;
    }
}

/* The word was junk, and so is what came after it. */
static void abandon_header(struct parse *p)
{
    p->state = p->header_is_parameter ? INVOKE : BETWEEN;
    if (p->header_is_parameter)
        parse_call_junk(&p->call, p->raw.data, p->raw.len);
}

/* Blanks and name=", neither of which holds a '<'. */
static const char *step_header_front(struct parse *p, const char *at, const char *end)
{
    const char *from = at;

    while (at < end && p->header == HEADER_BLANKS && parse_is_blank(*at))
        at++;
    if (at < end && p->header == HEADER_BLANKS)
        p->header = HEADER_ATTRIBUTE;
    while (at < end && p->header == HEADER_ATTRIBUTE) {
        if (*at != name_attribute.text[p->attribute_len]) {
            buf_append(&p->raw, from, (size_t)(at - from));
            abandon_header(p);
            return at;
        }
        at++;
        if (++p->attribute_len == name_attribute.len)
            p->header = HEADER_NAME;
    }
    buf_append(&p->raw, from, (size_t)(at - from));
    return at;
}

/* NAME up to its quote, or the tail up to '>'; EOS ends the output here too. */
static const char *step_header_back(struct parse *p, const char *at, const char *end)
{
    struct buf *into = p->header == HEADER_TAIL ? &p->tail
                       : p->header_is_parameter ? &p->call.key
                                                : &p->name;
    const char *stop = memchr(at, p->header == HEADER_NAME ? '"' : '>', (size_t)(end - at));
    const char *limit = stop != NULL ? stop : end;
    const char *q = at;

    while ((q = parse_find(q, limit)) < limit) {
        enum parse_match eos = parse_match(q, end, &parse_eos);

        if (eos == PARSE_FULL) {
            p->state = OVER;
            return end;
        }
        if (eos == PARSE_PART) {
            buf_append(into, at, (size_t)(q - at));
            return q;
        }
        q++;
    }
    buf_append(into, at, (size_t)(limit - at));
    if (stop == NULL)
        return end;
    if (p->header == HEADER_NAME)
        p->header = HEADER_TAIL;
    else
        finish_header(p);
    return stop + 1;
}

static const char *step_header(struct parse *p, const char *at, const char *end)
{
    return p->header == HEADER_BLANKS || p->header == HEADER_ATTRIBUTE
               ? step_header_front(p, at, end)
               : step_header_back(p, at, end);
}

/* ---- values ---- */

static const char *step_value(struct parse *p, const char *at, const char *end)
{
    const char *q = at;

    while ((q = parse_find(q, end)) < end) {
        enum parse_match parameter = parse_match(q, end, &parse_param_close);
        enum parse_match invoke = parse_match(q, end, &parse_invoke_close);
        enum parse_match block = parse_match(q, end, &parse_block_close);

        if (parameter == PARSE_FULL || invoke == PARSE_FULL || block == PARSE_FULL) {
            parse_call_value(&p->call, at, (size_t)(q - at));
            parse_call_parameter_end(&p->call);
            p->state = INVOKE; /* which acts on the other two */
            return parameter == PARSE_FULL ? q + parse_param_close.len : q;
        }
        if (parameter == PARSE_PART || invoke == PARSE_PART || block == PARSE_PART)
            break;
        q++;
    }
    /* A value that the end of the output cuts gets what cannot be a closer's DSML token. */
    if (p->final && q < end && parse_match(q, end, &parse_dsml_close) == PARSE_PART)
        q = end;
    parse_call_value(&p->call, at, (size_t)(q - at));
    return q;
}

/* ---- the whole ---- */

static const char *step(struct parse *p, const char *at, const char *end)
{
    switch (p->state) {
    case REASONING:
    case CONTENT:
        if (p->may_open)
            at = step_start(p, at, end);
        return at == NULL ? NULL : step_text(p, at, end);
    case BETWEEN:
        return step_between(p, at, end);
    case INVOKE:
        return step_invoke(p, at, end);
    case HEADER:
        return step_header(p, at, end);
    case VALUE:
        return step_value(p, at, end);
    default:
        return end;
    }
}

/* Runs the machine over [at, end) and returns from where on the text must be held. */
static const char *run(struct parse *p, const char *at, const char *end)
{
    while (at < end && p->state != OVER) {
        enum state before = p->state;
        const char *next = step(p, at, end);

        if (next == NULL || (next == at && p->state == before))
            break;
        at = next;
    }
    return p->state == OVER ? end : at;
}

enum status_code parse_new(const struct parse_options *opt, parse_emit_fn emit, void *ctx,
                           struct parse **out, struct status *st)
{
    static const enum state first[] = {
        [TURN_CONTENT] = CONTENT, [TURN_REASONING] = REASONING, [TURN_TOOL_CALLS] = BETWEEN};
    struct parse *p = calloc(1, sizeof(*p));

    if (p == NULL)
        return status_set(st, ST_EXHAUSTED, "no memory for a parser of output");
    p->emit = emit;
    p->ctx = ctx;
    p->tools = opt->tools;
    p->state = first[opt->start];
    p->may_open = p->state != BETWEEN;
    *out = p;
    return status_ok(st);
}

void parse_free(struct parse *p)
{
    if (p == NULL)
        return;
    parse_call_deinit(&p->call);
    buf_deinit(&p->raw);
    buf_deinit(&p->name);
    buf_deinit(&p->tail);
    buf_deinit(&p->input);
    free(p);
}

void parse_push(struct parse *p, const char *text, size_t len)
{
    const char *end, *held;
    size_t n;

    if (p->state == OVER || len == 0)
        return;
    if (p->n_held > 0) {
        p->input.len = p->n_held;
        buf_append(&p->input, text, len);
        text = p->input.data;
        len = p->input.len;
    }
    end = text + len;
    held = run(p, text, end);
    emit_arguments(p);
    n = (size_t)(end - held);
    assert(n <= PARSE_HELD_MAX);
    if (n > 0) {
        p->input.len = 0;
        buf_reserve(&p->input, PARSE_HELD_MAX);
        memmove(p->input.data, held, n);
    }
    p->n_held = n;
}

const char *parse_finish(struct parse *p, const char *engine_finish)
{
    p->final = true;
    if (p->n_held > 0)
        run(p, p->input.data, p->input.data + p->n_held);
    emit_arguments(p);
    p->n_held = 0;
    p->state = OVER;
    return p->n_calls > 0 && strcmp(engine_finish, "stop") == 0 ? "tool_calls" : engine_finish;
}

bool parse_is_over(const struct parse *p)
{
    return p->state == OVER;
}

size_t parse_held(const struct parse *p)
{
    return p->n_held;
}

bool parse_in_reasoning(const struct parse *p)
{
    return p->state == REASONING;
}
