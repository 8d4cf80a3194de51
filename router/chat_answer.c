#include "router/chat_answer.h"

/* ---- deltas out ------------------------------------------------------------------------------ */

static void flush(struct chat_answer *a)
{
    struct buf *pending = &a->scratch->pending;
    struct chat_delta d = {a->pending_kind, a->pending_call, pending->data, pending->len};

    if (pending->len > 0)
        a->emit(a->arg, &d);
    pending->len = 0;
}

/* Where text of a kind goes. */
static struct buf *open_delta(struct chat_answer *a, enum chat_delta_kind kind, unsigned call)
{
    if (kind != a->pending_kind || call != a->pending_call)
        flush(a);
    a->pending_kind = kind;
    a->pending_call = call;
    return &a->scratch->pending;
}

static void put(struct chat_answer *a, enum chat_delta_kind kind, unsigned call, const char *text,
                size_t len)
{
    buf_append(open_delta(a, kind, call), text, len);
}

static void put_call(struct chat_answer *a, unsigned call, const char *name, size_t len)
{
    struct chat_delta d = {CHAT_CALL, call, name, len};

    flush(a);
    a->emit(a->arg, &d);
}

/* ---- between parser and deltas --------------------------------------------------------------- */

/* Reasoning is over: what was held of it comes out. */
static void release_reasoning(struct chat_answer *a)
{
    put(a, CHAT_REASONING, 0, a->held.data, a->held.len);
    buf_deinit(&a->held);
}

static void put_content(struct chat_answer *a, const char *text, size_t len)
{
    if (a->stop == NULL)
        put(a, CHAT_CONTENT, 0, text, len);
    else
        a->stopped = stop_push(a->stop, text, len, open_delta(a, CHAT_CONTENT, 0));
}

/* What was withheld was no stop string after all. */
static void release_withheld(struct chat_answer *a)
{
    if (a->stop != NULL)
        stop_finish(a->stop, open_delta(a, CHAT_CONTENT, 0));
}

/* Reasoning that is not separate stands in the content as the model wrote it. */
static void end_reasoning(struct chat_answer *a)
{
    if (a->in_reasoning && !a->separate_reasoning)
        put(a, CHAT_CONTENT, 0, "</think>", 8);
    a->in_reasoning = false;
}

static void on_parsed(void *ctx, const struct parse_event *e)
{
    struct chat_answer *a = ctx;

    if (a->stopped || a->cut)
        return;
    if (e->kind != PARSE_REASONING)
        end_reasoning(a);
    if (e->kind != PARSE_REASONING && a->held.len > 0)
        release_reasoning(a);
    switch (e->kind) {
    case PARSE_REASONING:
        if (a->hold_reasoning)
            buf_append(&a->held, e->text, e->len);
        else
            put(a, a->separate_reasoning ? CHAT_REASONING : CHAT_CONTENT, 0, e->text, e->len);
        break;
    case PARSE_CONTENT:
        put_content(a, e->text, e->len);
        break;
    case PARSE_CALL:
        release_withheld(a);
        put_call(a, e->call, e->text, e->len);
        break;
    case PARSE_CALL_ARGUMENTS:
        put(a, CHAT_ARGUMENTS, e->call, e->text, e->len);
        break;
    case PARSE_CALL_END:
        a->cut = a->single_call;
        break;
    }
}

/* Text that the model has written. */
static void take_text(struct chat_answer *a, const struct buf *text)
{
    if (text->len == 0)
        return;
    if (a->parse != NULL)
        parse_push(a->parse, text->data, text->len);
    else
        put_content(a, text->data, text->len);
}

/* ---- tokens in ------------------------------------------------------------------------------- */

/* The end: everything held back comes out, unless a stop string has ended it. */
static void finish(struct chat_answer *a, const char *engine_finish)
{
    struct buf *text = &a->scratch->text;

    text->len = 0;
    if (!a->stopped) {
        detokenizer_finish(&a->detokenizer, text);
        take_text(a, text);
    }
    a->finish = a->parse != NULL ? parse_finish(a->parse, engine_finish) : engine_finish;
    if (a->held.len > 0)
        release_reasoning(a);
    if (a->stopped)
        a->finish = "stop";
    else
        release_withheld(a);
}

bool chat_answer_in_reasoning(const struct chat_answer *a)
{
    return a->parse != NULL && parse_in_reasoning(a->parse);
}

static bool is_silent(const struct chat_answer *a, int32_t id, bool is_stop_token)
{
    return id == a->router->eos_id || (is_stop_token && !a->no_stop_trim);
}

enum status_code chat_answer_push(struct chat_answer *a, const int32_t *ids, size_t n,
                                  Baton__V1__FinishReason engine_finish, struct status *st)
{
    struct buf *text = &a->scratch->text;

    for (size_t i = 0; i < n && a->finish == NULL; i++) {
        bool last = i + 1 == n && engine_finish == BATON__V1__FINISH_REASON__FINISH_STOP;
        bool silent = is_silent(a, ids[i], last);

        if (last)
            a->stop_id = ids[i];
        a->n_completion++;
        a->n_reasoning += !silent && chat_answer_in_reasoning(a);
        if (silent)
            continue;
        text->len = 0;
        if (detokenizer_push(&a->detokenizer, a->router->tokenizer, ids[i], text, st) != ST_OK) {
            a->scratch->pending.len = 0;
            return status_set(st, ST_CORRUPT,
                              "the decode worker sent token %d, the vocabulary "
                              "has %d",
                              ids[i], tokenizer_vocab(a->router->tokenizer));
        }
        take_text(a, text);
        if (a->stopped || a->cut || (a->parse != NULL && parse_is_over(a->parse)))
            finish(a, "stop");
    }
    if (a->finish == NULL && engine_finish != BATON__V1__FINISH_REASON__FINISH_NONE)
        finish(a, engine_finish == BATON__V1__FINISH_REASON__FINISH_LENGTH ? "length" : "stop");
    flush(a);
    return status_ok(st);
}

const char *chat_answer_stop_string(const struct chat_answer *a, size_t *len)
{
    return a->stopped ? stop_text(a->stop, (size_t)stop_found(a->stop), len) : NULL;
}

/* ---- life ------------------------------------------------------------------------------------ */

enum status_code chat_answer_init(struct chat_answer *a, const struct router *router,
                                  const struct text_task *task, struct chat_answer_scratch *scratch,
                                  chat_delta_fn emit, void *arg, struct status *st)
{
    const struct parse_options options = {.start = task->start, .tools = task->tools};
    const struct chat_params *p = &task->params;

    *a = (struct chat_answer){
        .router = router,
        .scratch = scratch,
        .emit = emit,
        .arg = arg,
        .separate_reasoning = p->separate_reasoning,
        .in_reasoning = !task->raw && task->start == TURN_REASONING,
        .no_stop_trim = p->no_stop_trim,
        .single_call = !p->parallel_tool_calls,
        .hold_reasoning = !p->stream_reasoning && p->stream && p->separate_reasoning,
        .stop_id = -1,
    };
    status_ok(st);
    if (!task->raw && parse_new(&options, on_parsed, a, &a->parse, st) != ST_OK)
        return st->code;
    if (p->n_stop > 0)
        return stop_new(p->n_stop, p->stop, !p->no_stop_trim, &a->stop, st);
    return ST_OK;
}

void chat_answer_deinit(struct chat_answer *a)
{
    parse_free(a->parse);
    stop_free(a->stop);
    buf_deinit(&a->held);
    a->parse = NULL;
    a->stop = NULL;
}
