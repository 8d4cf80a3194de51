#include "common/text/parse_call.h"

#include <stdlib.h>
#include <string.h>

#include "common/base/hash.h"
#include "common/base/json.h"
#include "common/text/parse_scan.h"

/* ---- keys ---- */

enum { LINEAR_KEYS_MAX = 8 }; /* up to here comparing all is quicker than hashing */

struct parse_span {
    size_t offset, len;
};

static struct parse_span span_at(const struct parse_keys *keys, size_t i)
{
    struct parse_span span;

    memcpy(&span, keys->spans.data + i * sizeof(span), sizeof(span));
    return span;
}

static bool is_key(const struct parse_keys *keys, size_t i, const char *key, size_t len)
{
    struct parse_span span = span_at(keys, i);

    return span.len == len && memcmp(keys->text.data + span.offset, key, len) == 0;
}

/* The slot where the key stands or would stand. */
static size_t find_slot(const struct parse_keys *keys, const char *key, size_t len)
{
    size_t slot = hash_bytes(keys->seed, key, len) & (keys->n_slots - 1);

    while (keys->slots[slot] != 0 && !is_key(keys, keys->slots[slot] - 1, key, len))
        slot = (slot + 1) & (keys->n_slots - 1);
    return slot;
}

static void grow_slots(struct parse_keys *keys, size_t n_keys)
{
    if (keys->seed == 0)
        keys->seed = hash_seed();
    keys->n_slots = keys->n_slots == 0 ? 4 * LINEAR_KEYS_MAX : 2 * keys->n_slots;
    free(keys->slots);
    keys->slots = calloc(keys->n_slots, sizeof(*keys->slots));
    if (keys->slots == NULL)
        abort(); /* as struct buf does; bounded by the output's length */
    for (size_t i = 0; i < n_keys; i++) {
        struct parse_span span = span_at(keys, i);

        keys->slots[find_slot(keys, keys->text.data + span.offset, span.len)] = (uint32_t)i + 1;
    }
}

/* Adds a key; false when it is there already. */
static bool add_key(struct parse_keys *keys, const struct buf *key)
{
    size_t n_keys = keys->spans.len / sizeof(struct parse_span), slot = 0;
    struct parse_span span = {.offset = keys->text.len, .len = key->len};
    const char *text = key->len > 0 ? key->data : "";

    if (n_keys < LINEAR_KEYS_MAX) {
        for (size_t i = 0; i < n_keys; i++)
            if (is_key(keys, i, text, key->len))
                return false;
    } else {
        if (2 * (n_keys + 1) > keys->n_slots)
            grow_slots(keys, n_keys);
        slot = find_slot(keys, text, key->len);
        if (keys->slots[slot] != 0)
            return false;
        keys->slots[slot] = (uint32_t)n_keys + 1;
    }
    buf_reserve(&keys->text, key->len + 1); /* so that an empty key has an address */
    buf_append(&keys->text, text, key->len);
    buf_append(&keys->spans, &span, sizeof(span));
    return true;
}

static void clear_keys(struct parse_keys *keys)
{
    keys->text.len = keys->spans.len = 0;
    free(keys->slots); /* a large table would cost every later call its size */
    keys->slots = NULL;
    keys->n_slots = 0;
}

/* ---- the call ---- */

void parse_call_deinit(struct parse_call *c)
{
    clear_keys(&c->keys);
    buf_deinit(&c->keys.text);
    buf_deinit(&c->keys.spans);
    buf_deinit(&c->key);
    buf_deinit(&c->value);
    buf_deinit(&c->junk);
    buf_deinit(&c->out);
}

void parse_call_begin(struct parse_call *c, bool active)
{
    c->active = active;
    c->n_members = 0;
    c->had_parameter = false;
    c->junk.len = 0;
    c->junk_dead = !active;
    clear_keys(&c->keys);
}

void parse_call_junk(struct parse_call *c, const char *text, size_t len)
{
    if (c->junk_dead || c->had_parameter)
        return;
    while (c->junk.len == 0 && len > 0 && parse_is_blank(*text)) {
        text++;
        len--;
    }
    if (c->junk.len == 0 && len > 0 && *text != '{')
        c->junk_dead = true;
    else
        buf_append(&c->junk, text, len);
}

/* Exactly one value of RFC 8259; names may repeat and halves of surrogate pairs may be escaped. */
static bool is_json(const struct buf *text)
{
    struct json_doc *doc = NULL;
    struct status st;
    bool ok = json_parse(text->len > 0 ? text->data : "", text->len,
                         JSON_LAST_KEY_WINS | JSON_LONE_SURROGATES, &doc, &st) == ST_OK;

    json_free(doc);
    return ok;
}

static void begin_member(struct parse_call *c)
{
    buf_puts(&c->out, c->n_members++ == 0 ? "{" : ", ");
    json_write_string(&c->out, c->key.data, c->key.len);
    buf_puts(&c->out, ": ");
}

void parse_call_parameter(struct parse_call *c, bool is_string)
{
    c->is_string = is_string;
    c->value.len = 0;
    c->had_parameter = true;
    c->muted = !c->active || !add_key(&c->keys, &c->key);
    if (!c->muted && is_string) {
        begin_member(c);
        buf_puts(&c->out, "\"");
    }
}

void parse_call_value(struct parse_call *c, const char *text, size_t len)
{
    if (c->muted)
        return;
    if (c->is_string)
        json_write_escaped(&c->out, text, len);
    else
        buf_append(&c->value, text, len);
}

void parse_call_parameter_end(struct parse_call *c)
{
    if (c->muted)
        return;
    if (c->is_string) {
        buf_puts(&c->out, "\"");
        return;
    }
    begin_member(c);
    if (is_json(&c->value))
        buf_append(&c->out, c->value.data, c->value.len);
    else
        json_write_string(&c->out, c->value.data, c->value.len);
}

void parse_call_end(struct parse_call *c)
{
    if (!c->active)
        return;
    while (c->junk.len > 0 && parse_is_blank(c->junk.data[c->junk.len - 1]))
        c->junk.len--;
    if (c->n_members > 0)
        buf_puts(&c->out, "}");
    else if (!c->had_parameter && c->junk.len > 0 && is_json(&c->junk))
        buf_append(&c->out, c->junk.data, c->junk.len);
    else
        buf_puts(&c->out, "{}");
}
