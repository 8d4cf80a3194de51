#include "common/text/tokenizer_parts.h"

#include "common/base/json.h"
#include "common/text/pretokenize.h"

#include <stdio.h>

static bool refuse(struct status *st, const char *what, const char *supported)
{
    status_set(st, ST_INVALID, "%s is not supported (supported: %s)", what, supported);
    return false;
}

static bool is_absent(const struct json *v)
{
    return v == NULL || v->type == JSON_NULL;
}

static bool is_bool(const struct json *v, enum json_type which)
{
    return v != NULL && v->type == which;
}

/* "name NFC": how an unsupported component is called in an error. */
static const char *type_name(const struct json *v, const char *component, char *out, size_t n)
{
    const struct json *type = json_get(v, "type");

    if (type != NULL && type->type == JSON_STRING)
        snprintf(out, n, "%s \"%s\"", component, type->text);
    else
        snprintf(out, n, "%s without a type", component);
    return out;
}

static bool check_null(const struct json *v, const char *name, struct status *st)
{
    return is_absent(v) || refuse(st, name, "null");
}

static bool check_normalizer(const struct json *v, struct status *st)
{
    const struct json *list = json_get(v, "normalizers");
    char what[64];

    if (is_absent(v))
        return true;
    if (json_is(json_get(v, "type"), "Sequence") && list != NULL && list->type == JSON_ARRAY) {
        if (list->len == 0)
            return true;
        v = &list->items[0];
    }
    return refuse(st, type_name(v, "normalizer", what, sizeof(what)), "none, or an empty Sequence");
}

static bool check_byte_level(const struct json *v, const char *component, struct status *st)
{
    char what[64];

    return json_is(json_get(v, "type"), "ByteLevel") ||
           refuse(st, type_name(v, component, what, sizeof(what)), "ByteLevel");
}

static bool check_split(const struct json *v, int i, struct status *st)
{
    const struct json *pattern = json_get(json_get(v, "pattern"), "Regex");
    char what[256];

    if (!json_is(json_get(v, "type"), "Split"))
        return refuse(st, type_name(v, "pre_tokenizer", what, sizeof(what)),
                      "three Splits, then ByteLevel");
    if (!json_is(pattern, pretokenize_patterns[i])) {
        snprintf(what, sizeof(what), "pre_tokenizer Split %d with the pattern %.150s", i + 1,
                 pattern != NULL && pattern->type == JSON_STRING ? pattern->text
                                                                 : "of another kind");
        return refuse(st, what, "the three regexes of DeepSeek-V3 and V4");
    }
    if (!json_is(json_get(v, "behavior"), "Isolated"))
        return refuse(st, "pre_tokenizer Split with another behavior", "Isolated");
    if (!is_bool(json_get(v, "invert"), JSON_FALSE) && !is_absent(json_get(v, "invert")))
        return refuse(st, "pre_tokenizer Split with invert", "invert: false");
    return true;
}

static bool check_pre_tokenizer(const struct json *v, struct status *st)
{
    const struct json *list = json_get(v, "pretokenizers");
    char what[64];

    if (!json_is(json_get(v, "type"), "Sequence") || list == NULL || list->type != JSON_ARRAY)
        return refuse(st, type_name(v, "pre_tokenizer", what, sizeof(what)),
                      "a Sequence of three Splits and ByteLevel");
    for (uint32_t i = 0; i < 3 && i < list->len; i++)
        if (!check_split(&list->items[i], (int)i, st))
            return false;
    if (list->len != 4) {
        snprintf(what, sizeof(what), "a pre_tokenizer Sequence of %u parts", list->len);
        return refuse(st, what, "three Splits, then ByteLevel");
    }
    if (!check_byte_level(&list->items[3], "pre_tokenizer", st))
        return false;
    if (!is_bool(json_get(&list->items[3], "add_prefix_space"), JSON_FALSE))
        return refuse(st, "pre_tokenizer ByteLevel with add_prefix_space",
                      "add_prefix_space: false");
    if (!is_bool(json_get(&list->items[3], "use_regex"), JSON_FALSE))
        return refuse(st, "pre_tokenizer ByteLevel with use_regex", "use_regex: false");
    return true;
}

/* Only offsets, which nobody asks for, depend on what is inside. */
static bool check_post_processor(const struct json *v, struct status *st)
{
    return is_absent(v) || check_byte_level(v, "post_processor", st);
}

static bool check_decoder(const struct json *v, struct status *st)
{
    return check_byte_level(v, "decoder", st);
}

static bool check_version(const struct json *v, struct status *st)
{
    return json_is(v, "1.0") || refuse(st, "this version of tokenizer.json", "\"1.0\"");
}

static bool check_truncation(const struct json *v, struct status *st)
{
    return check_null(v, "truncation", st);
}

static bool check_padding(const struct json *v, struct status *st)
{
    return check_null(v, "padding", st);
}

static bool check_type(const struct json *v, struct status *st)
{
    char what[64];

    if (json_is(v, "BPE"))
        return true;
    snprintf(what, sizeof(what), "model %.40s", v->type == JSON_STRING ? v->text : "of no type");
    return refuse(st, what, "BPE");
}

static bool check_dropout(const struct json *v, struct status *st)
{
    return check_null(v, "model.dropout", st);
}

static bool check_unk(const struct json *v, struct status *st)
{
    return check_null(v, "model.unk_token", st);
}

static bool is_empty_string(const struct json *v)
{
    return v->type == JSON_STRING && v->len == 0;
}

static bool check_prefix(const struct json *v, struct status *st)
{
    return is_empty_string(v) || check_null(v, "model.continuing_subword_prefix", st);
}

static bool check_suffix(const struct json *v, struct status *st)
{
    return is_empty_string(v) || check_null(v, "model.end_of_word_suffix", st);
}

static bool check_fuse(const struct json *v, struct status *st)
{
    return is_bool(v, JSON_FALSE) || refuse(st, "model.fuse_unk", "false");
}

static bool check_fallback(const struct json *v, struct status *st)
{
    return is_bool(v, JSON_FALSE) || refuse(st, "model.byte_fallback", "false");
}

static bool check_ignore_merges(const struct json *v, struct status *st)
{
    return is_bool(v, JSON_FALSE) || refuse(st, "model.ignore_merges", "false");
}

struct check {
    const char *key;
    bool (*check)(const struct json *v, struct status *st);
};

static const struct check top_checks[] = {
    {"version", check_version},
    {"truncation", check_truncation},
    {"padding", check_padding},
    {"normalizer", check_normalizer},
    {"pre_tokenizer", check_pre_tokenizer},
    {"post_processor", check_post_processor},
    {"decoder", check_decoder},
    {NULL, NULL},
};

static const struct check model_checks[] = {
    {"type", check_type},
    {"dropout", check_dropout},
    {"unk_token", check_unk},
    {"continuing_subword_prefix", check_prefix},
    {"end_of_word_suffix", check_suffix},
    {"fuse_unk", check_fuse},
    {"byte_fallback", check_fallback},
    {"ignore_merges", check_ignore_merges},
    {NULL, NULL},
};

static bool is_key(const char *name, const char *key, size_t len)
{
    return strlen(name) == len && memcmp(name, key, len) == 0;
}

bool tokenizer_part_check(enum tokenizer_parts where, const char *key, size_t len, struct scan *s)
{
    const struct check *c = where == TOKENIZER_MODEL_PARTS ? model_checks : top_checks;
    struct json_doc *doc;
    const char *text;
    bool ok;

    while (c->key != NULL && !is_key(c->key, key, len))
        c++;
    if (c->key == NULL) {
        status_set(s->st, ST_INVALID,
                   "the key \"%.*s\" is not known: what it changes is not supported",
                   (int)(len < 80 ? len : 80), key);
        return false;
    }
    if (!scan_skip(s, &text, &len))
        return false;
    if (json_parse(text, len, 0, &doc, s->st) != ST_OK) {
        status_wrap(s->st, "%s", c->key);
        return false;
    }
    ok = c->check(json_root(doc), s->st);
    json_free(doc);
    return ok;
}
