#include "deploy/baton/commands.h"

#include "common/base/flags.h"
#include "common/text/tokenizer.h"
#include "deploy/baton/jsonl.h"

#include <stdio.h>

struct text_tool {
    struct tokenizer *tokenizer;
    struct tokenizer_cache *cache;
};

static enum status_code write_ids(struct buf *out, struct token_list *ids)
{
    buf_puts(out, "{\"ids\": [");
    for (size_t i = 0; i < ids->n; i++)
        buf_printf(out, i ? ", %d" : "%d", ids->ids[i]);
    buf_puts(out, "]}");
    return ST_OK;
}

/* The prompt that the text and its ranges describe; the tokenizer looks the specials' ids up. */
static enum status_code read_prompt(const struct json *text, const struct json *ranges,
                                    struct prompt *p, struct status *st)
{
    size_t done = 0;

    if (ranges->type != JSON_ARRAY)
        return status_set(st, ST_INVALID, "special_ranges is no array");
    for (uint32_t i = 0; i < ranges->len; i++) {
        const struct json *range = &ranges->items[i];
        int64_t from, to;
        if (range->type != JSON_ARRAY || range->len != 2 || !json_int(&range->items[0], &from) ||
            !json_int(&range->items[1], &to))
            return status_set(st, ST_INVALID, "special_ranges[%u] is no pair of numbers", i);
        if (from < (int64_t)done || to <= from || to > (int64_t)text->len)
            return status_set(st, ST_INVALID,
                              "special_ranges[%u]: from %lld to %lld, expected to ascend within "
                              "the prompt's %u bytes",
                              i, (long long)from, (long long)to, text->len);
        prompt_append_text(p, text->text + done, (size_t)from - done);
        prompt_append_special(p, -1, text->text + from, (uint32_t)(to - from));
        done = (size_t)to;
    }
    prompt_append_text(p, text->text + done, text->len - done);
    return status_ok(st);
}

static enum status_code tokenize_prompt(struct text_tool *tool, const struct json *text,
                                        const struct json *ranges, struct token_list *ids,
                                        struct status *st)
{
    struct prompt p;

    prompt_init(&p);
    if (read_prompt(text, ranges, &p, st) == ST_OK)
        tokenizer_encode_prompt(tool->tokenizer, tool->cache, &p, ids, st);
    prompt_deinit(&p);
    return st->code;
}

static enum status_code tokenize_line(void *ctx, const struct json *line, struct buf *out,
                                      struct status *st)
{
    const struct json *text = json_get(line, "text"), *prompt = json_get(line, "prompt"),
                      *ranges = json_get(line, "special_ranges"), *plain = json_get(line, "plain");
    struct text_tool *tool = ctx;
    struct token_list ids = {0};
    unsigned flags = plain != NULL && plain->type == JSON_TRUE ? 0 : TOKENIZE_ADDED;

    if (plain != NULL && plain->type != JSON_TRUE && plain->type != JSON_FALSE)
        return status_set(st, ST_INVALID, "plain is neither true nor false");
    if (text != NULL && text->type == JSON_STRING && prompt == NULL)
        tokenizer_encode(tool->tokenizer, tool->cache, text->text, text->len, flags, &ids, st);
    else if (text == NULL && prompt != NULL && prompt->type == JSON_STRING && ranges != NULL)
        tokenize_prompt(tool, prompt, ranges, &ids, st);
    else
        status_set(st, ST_INVALID,
                   "expected a string \"text\", or a string \"prompt\" with \"special_ranges\"");
    if (st->code == ST_OK)
        write_ids(out, &ids);
    token_list_deinit(&ids);
    return st->code;
}

static enum status_code detokenize(const struct tokenizer *t, const struct json *ids,
                                   struct buf *out, struct buf *piece, struct status *st)
{
    struct detokenizer d = {.n_held = 0};

    buf_puts(out, "{\"pieces\": [");
    for (uint32_t i = 0; i < ids->len; i++) {
        int64_t id;
        if (!json_int(&ids->items[i], &id) || id < 0 || id >= tokenizer_vocab(t))
            return status_set(st, ST_INVALID, "ids[%u] is no token id: expected 0 to %d", i,
                              tokenizer_vocab(t) - 1);
        piece->len = 0;
        if (detokenizer_push(&d, t, (int32_t)id, piece, st) != ST_OK)
            return st->code;
        if (i > 0)
            buf_puts(out, ", ");
        json_write_string(out, piece->data ? piece->data : "", piece->len);
    }
    piece->len = 0;
    detokenizer_finish(&d, piece);
    buf_puts(out, "], \"tail\": ");
    json_write_string(out, piece->data ? piece->data : "", piece->len);
    buf_puts(out, "}");
    return status_ok(st);
}

static enum status_code detokenize_line(void *ctx, const struct json *line, struct buf *out,
                                        struct status *st)
{
    const struct json *ids = json_get(line, "ids");
    const struct text_tool *tool = ctx;
    struct buf piece = {0};

    if (ids == NULL || ids->type != JSON_ARRAY)
        return status_set(st, ST_INVALID, "expected an array \"ids\"");
    detokenize(tool->tokenizer, ids, out, &piece, st);
    buf_deinit(&piece);
    return st->code;
}

/* Both commands: one flag, then lines. */
static int run(int argc, char **argv, const char *heading, jsonl_fn answer)
{
    const char *path = NULL;
    struct text_tool tool = {0};
    struct status st;
    const struct flag flags[] = {
        {"tokenizer-path", FLAG_STRING, &path, .arg = "PATH",
         .help = "tokenizer.json, or the directory that holds it"},
        {0},
    };
    size_t n_positional = 0;
    int rc = 2;

    if (flags_parse(flags, argc, argv, &n_positional, NULL, &st) != ST_OK) {
        if (st.code == ST_CANCELLED) {
            flags_help(flags, heading);
            return 0;
        }
        fprintf(stderr, "baton %s: %s\n", argv[0], st.msg);
        return 2;
    }
    if (path == NULL) {
        fprintf(stderr,
                "baton %s: --tokenizer-path is missing: give tokenizer.json or its "
                "directory\n",
                argv[0]);
        return 2;
    }
    if (tokenizer_open(path, &tool.tokenizer, &st) != ST_OK ||
        tokenizer_cache_new(0, &tool.cache, &st) != ST_OK) {
        fprintf(stderr, "baton %s: %s\n", argv[0], st.msg);
        rc = 1;
    } else {
        rc = jsonl_run(0, answer, &tool);
    }
    tokenizer_cache_free(tool.cache);
    tokenizer_free(tool.tokenizer);
    return rc;
}

int cmd_tokenize(int argc, char **argv)
{
    return run(argc, argv,
               "baton tokenize --tokenizer-path PATH: text to token ids. JSON lines in:\n"
               "{\"text\"}, {\"text\", \"plain\": true} (added tokens are text), or {\"prompt\",\n"
               "\"special_ranges\"} (byte ranges that are special tokens); out: {\"ids\"}.",
               tokenize_line);
}

int cmd_detokenize(int argc, char **argv)
{
    return run(argc, argv,
               "baton detokenize --tokenizer-path PATH: token ids to text, as a stream shows it.\n"
               "JSON lines in: {\"ids\"}; out: {\"pieces\", \"tail\"}.",
               detokenize_line);
}
