#include "common/base/json.h"

#include <string.h>

#include "common/base/json_bytes.h"

void json_write_escaped(struct buf *out, const char *s, size_t len)
{
    static const char hex[] = "0123456789abcdef";
    static const char short_escapes[32] = {
        ['\b'] = 'b', ['\t'] = 't', ['\n'] = 'n', ['\f'] = 'f', ['\r'] = 'r'};
    const char *p = s, *end;

    if (len == 0)
        return; /* s may be NULL */
    end = s + len;
    buf_reserve(out, len);
    for (;;) {
        const char *run = p;
        uint64_t w;

        while (end - p >= 8) {
            memcpy(&w, p, 8);
            if (json_special_bytes(w, false))
                break;
            p += 8;
        }
        while (p < end && *p != '"' && *p != '\\' && (unsigned char)*p >= 0x20)
            p++;
        buf_append(out, run, (size_t)(p - run));
        if (p == end)
            break;
        buf_reserve(out, 6);
        out->data[out->len++] = '\\';
        if (*p == '"' || *p == '\\') {
            out->data[out->len++] = *p;
        } else if (short_escapes[(unsigned char)*p] != 0) {
            out->data[out->len++] = short_escapes[(unsigned char)*p];
        } else {
            memcpy(out->data + out->len, "u00", 3);
            out->data[out->len + 3] = hex[(unsigned char)*p >> 4];
            out->data[out->len + 4] = hex[*p & 15];
            out->len += 5;
        }
        p++;
    }
}

void json_write_string(struct buf *out, const char *s, size_t len)
{
    buf_reserve(out, len + 2);
    buf_append(out, "\"", 1);
    json_write_escaped(out, s, len);
    buf_append(out, "\"", 1);
}

static void write_scalar(struct buf *out, const struct json *v, const struct json_style *style)
{
    if (v->type == JSON_STRING)
        json_write_string(out, v->text, v->len);
    else if (v->type == JSON_NUMBER && style->number != NULL)
        style->number(out, v);
    else if (v->type == JSON_NUMBER)
        buf_append(out, v->text, v->len);
    else
        buf_puts(out, v->type == JSON_NULL ? "null" : v->type == JSON_TRUE ? "true" : "false");
}

/* A container that is being written. */
struct open {
    const struct json *v;
    uint32_t next; /* its next child */
};

void json_write(struct buf *out, const struct json *v, const struct json_style *style)
{
    static const struct json_style compact = {",", ":", NULL};
    struct buf stack = {0}; /* of struct open, innermost last */
    struct open top = {.v = NULL};

    if (style == NULL)
        style = &compact;
    for (;;) {
        if (v->type != JSON_ARRAY && v->type != JSON_OBJECT) {
            write_scalar(out, v, style);
        } else {
            if (top.v != NULL)
                buf_append(&stack, &top, sizeof(top));
            top = (struct open){.v = v};
            buf_puts(out, v->type == JSON_ARRAY ? "[" : "{");
        }
        while (top.v != NULL && top.next == top.v->len) {
            buf_puts(out, top.v->type == JSON_ARRAY ? "]" : "}");
            top.v = NULL;
            if (stack.len > 0) {
                stack.len -= sizeof(top);
                memcpy(&top, stack.data + stack.len, sizeof(top));
            }
        }
        if (top.v == NULL)
            break;
        if (top.next > 0)
            buf_puts(out, style->comma);
        if (top.v->type == JSON_OBJECT) {
            const struct json_member *m = &top.v->members[top.next];

            json_write_string(out, m->key, m->key_len);
            buf_puts(out, style->colon);
            v = &m->value;
        } else {
            v = &top.v->items[top.next];
        }
        top.next++;
    }
    buf_deinit(&stack);
}
