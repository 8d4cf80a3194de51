#include "common/text/chat_error.h"

#include <stdarg.h>
#include <stdio.h>

#include "common/base/utf8.h"

enum { SHOWN_BYTES_MAX = 40 };

static void print_message(struct chat_error *err, size_t at, const char *fmt, va_list ap)
{
    size_t n;

    vsnprintf(err->message + at, sizeof(err->message) - at, fmt, ap);
    n = strlen(err->message);
    err->message[utf8_valid_prefix(err->message, n)] = '\0'; /* a cut may halve a character */
}

bool chat_fail(struct chat_error *err, const char *code, const char *param, const char *fmt, ...)
{
    va_list ap;

    err->status = 400;
    err->code = code;
    snprintf(err->param, sizeof(err->param), "%s", param);
    va_start(ap, fmt);
    print_message(err, 0, fmt, ap);
    va_end(ap);
    return false;
}

bool chat_fail_at(struct chat_error *err, uint32_t i, const char *field, const char *fmt, ...)
{
    va_list ap;
    int n;

    err->status = 400;
    err->code = "invalid_value";
    snprintf(err->param, sizeof(err->param), "%s[%u]%s", err->list == NULL ? "messages" : err->list,
             err->origin == NULL ? i : err->origin[i], field);
    n = snprintf(err->message, sizeof(err->message), "%s: ", err->param);
    va_start(ap, fmt);
    print_message(err, (size_t)n, fmt, ap);
    va_end(ap);
    return false;
}

bool chat_fail_memory(struct chat_error *err)
{
    chat_fail(err, "out_of_memory", "", "no memory to render this request");
    err->status = 503;
    return false;
}

int chat_shown(const struct json *v)
{
    size_t n = v->len < SHOWN_BYTES_MAX ? v->len : SHOWN_BYTES_MAX;

    return (int)utf8_valid_prefix(v->text, n);
}

const struct json *chat_get(const struct json *object, const char *key)
{
    const struct json *v = json_get(object, key);

    return v == NULL || v->type == JSON_NULL ? NULL : v;
}

bool chat_get_bool(const struct json *object, const char *where, const char *key, bool *out,
                   struct chat_error *err)
{
    const struct json *v = chat_get(object, key);
    char param[64];

    if (v == NULL)
        return true;
    if (v->type != JSON_TRUE && v->type != JSON_FALSE) {
        snprintf(param, sizeof(param), "%s%s", where, key);
        return chat_fail(err, "invalid_type", param, "%s must be true or false", param);
    }
    *out = v->type == JSON_TRUE;
    return true;
}
