#include "router/fields.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

bool field_fail(struct chat_error *err, const char *name, const char *code, const char *fmt, ...)
{
    va_list ap;

    err->status = 400;
    err->code = code;
    snprintf(err->param, sizeof(err->param), "%s", name);
    va_start(ap, fmt);
    vsnprintf(err->message, sizeof(err->message), fmt, ap);
    va_end(ap);
    return false;
}

static bool wrong_type(struct chat_error *err, const char *name, const char *expected)
{
    return field_fail(err, name, "invalid_type", "%s must be %s", name, expected);
}

static bool read_number(const struct field *f, const struct json *v, void *out,
                        struct chat_error *err)
{
    int64_t i = 0;
    double d;

    if (f->kind == FIELD_INT ? !json_int(v, &i) : !json_double(v, &d))
        return wrong_type(err, f->name, f->kind == FIELD_INT ? "a whole number" : "a number");
    if (f->kind == FIELD_INT)
        d = (double)i;
    if (!(d >= f->min && d <= f->max))
        return field_fail(err, f->name, "invalid_value", "%s must be within %.10g and %.10g",
                          f->name, f->min, f->max);
    if (f->kind == FIELD_INT)
        *(int64_t *)out = i;
    else
        *(double *)out = d;
    return true;
}

static bool read_string(const struct field *f, const struct json *v, void *out,
                        struct chat_error *err)
{
    if (v->type != JSON_STRING)
        return wrong_type(err, f->name, "a string");
    if (strlen(v->text) != v->len || (f->max > 0 && v->len > f->max))
        return field_fail(err, f->name, "invalid_value", "%s must have at most %.0f bytes", f->name,
                          f->max);
    *(const char **)out = v->text;
    return true;
}

/* Compares a value with one JSON text of a row: numbers by value, the rest by spelling. */
static bool equals(const struct json *v, const char *text, size_t len)
{
    char copy[32];
    struct json number = {.type = JSON_NUMBER, .text = copy};
    double a, b;

    snprintf(copy, sizeof(copy), "%.*s", (int)len, text);
    number.len = (uint32_t)strlen(copy);
    switch (v->type) {
    case JSON_NULL:
        return true;
    case JSON_FALSE:
        return strcmp(copy, "false") == 0;
    case JSON_TRUE:
        return strcmp(copy, "true") == 0;
    case JSON_NUMBER:
        return strchr("-0123456789", copy[0]) != NULL && json_double(v, &a) &&
               json_double(&number, &b) && a == b;
    case JSON_STRING:
        return copy[0] == '"' && len == (size_t)v->len + 2 &&
               memcmp(copy + 1, v->text, v->len) == 0;
    case JSON_ARRAY:
        return v->len == 0 && strcmp(copy, "[]") == 0;
    case JSON_OBJECT:
        return v->len == 0 && strcmp(copy, "{}") == 0;
    }
    return false;
}

static bool is_neutral(const struct field *f, const struct json *v)
{
    const char *p = f->neutral;

    while (p != NULL) {
        size_t n = strcspn(p, "|");

        if (equals(v, p, n))
            return true;
        p = p[n] == '|' ? p + n + 1 : NULL;
    }
    return false;
}

static bool read_one(const struct field *f, const struct json *v, void *out, struct chat_error *err)
{
    void *at = (char *)out + f->offset;

    switch (f->kind) {
    case FIELD_INT:
    case FIELD_FLOAT:
        return read_number(f, v, at, err);
    case FIELD_BOOL:
        if (v->type != JSON_TRUE && v->type != JSON_FALSE)
            return wrong_type(err, f->name, "true or false");
        *(bool *)at = v->type == JSON_TRUE;
        return true;
    case FIELD_STRING:
        return read_string(f, v, at, err);
    case FIELD_READ:
        return f->read(f, v, out, err);
    case FIELD_ELSEWHERE:
    case FIELD_NO_EFFECT:
        return true;
    case FIELD_NEUTRAL:
        if (!is_neutral(f, v))
            return field_fail(err, f->name, "unsupported_parameter",
                              "%s is not supported by this server%s%s: leave it out", f->name,
                              f->neutral == NULL ? "" : " other than as ",
                              f->neutral == NULL ? "" : f->neutral);
        return true;
    }
    return false;
}

static const struct field *find(const struct field *const *tables, const char *name)
{
    for (; *tables != NULL; tables++)
        for (const struct field *f = *tables; f->name != NULL; f++)
            if (strcmp(f->name, name) == 0)
                return f;
    return NULL;
}

bool fields_read(const struct field *const *tables, const struct json *body, void *out,
                 struct chat_error *err)
{
    if (body->type != JSON_OBJECT)
        return field_fail(err, "", "invalid_type", "the request body must be a JSON object");
    for (uint32_t i = 0; i < body->len; i++) {
        const struct json_member *m = &body->members[i];
        const struct field *f = find(tables, m->key);

        if (f == NULL) {
            char shown[64];

            snprintf(shown, sizeof(shown), "%s", m->key);
            return field_fail(err, shown, "unknown_parameter",
                              "unknown parameter '%s': this API has none of that name", shown);
        }
        if (m->value.type != JSON_NULL && !read_one(f, &m->value, out, err))
            return false;
    }
    return true;
}
