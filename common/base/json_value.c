#include "common/base/json.h"

#include <stdlib.h>
#include <string.h>

const struct json *json_get(const struct json *v, const char *key)
{
    size_t n = strlen(key);

    if (v == NULL || v->type != JSON_OBJECT)
        return NULL;
    for (uint32_t i = 0; i < v->len; i++)
        if (v->members[i].key_len == n && memcmp(v->members[i].key, key, n) == 0)
            return &v->members[i].value;
    return NULL;
}

bool json_int(const struct json *v, int64_t *out)
{
    const char *p, *digits_end;
    bool negative;
    uint64_t magnitude = 0;
    int64_t exponent = 0, n_zeros = 0;
    bool seen_point = false;

    if (v == NULL || v->type != JSON_NUMBER)
        return false;
    p = v->text;
    negative = *p == '-';
    p += negative;
    if (*p < '0' || *p > '9') /* NaN, Infinity */
        return false;
    digits_end = p + strcspn(p, "eE");
    if (*digits_end != '\0') { /* strtoll saturates: far outside either way */
        exponent = strtoll(digits_end + 1, NULL, 10);
        if (exponent > INT32_MAX || exponent < INT32_MIN)
            exponent = exponent > 0 ? INT32_MAX : INT32_MIN;
    }
    /* value = magnitude * 10^(n_zeros + exponent), zeros counted so that trailing ones cost nothing
     */
    for (; p < digits_end; p++) {
        if (*p == '.') {
            seen_point = true;
            continue;
        }
        exponent -= seen_point;
        n_zeros++;
        if (*p == '0')
            continue;
        for (; n_zeros > 0; n_zeros--)
            if (__builtin_mul_overflow(magnitude, 10, &magnitude))
                return false;
        if (__builtin_add_overflow(magnitude, (uint64_t)(*p - '0'), &magnitude))
            return false;
    }
    exponent += n_zeros;
    if (magnitude == 0) {
        *out = 0;
        return true;
    }
    if (exponent < 0)
        return false;
    for (; exponent > 0; exponent--)
        if (__builtin_mul_overflow(magnitude, 10, &magnitude))
            return false;
    if (magnitude > (uint64_t)INT64_MAX + negative)
        return false;
    *out = negative ? (int64_t)(0 - magnitude) : (int64_t)magnitude;
    return true;
}

bool json_double(const struct json *v, double *out)
{
    if (v == NULL || v->type != JSON_NUMBER)
        return false;
    *out = strtod(v->text, NULL); /* knows NaN and Infinity; the C locale is never left */
    return true;
}

bool json_is(const struct json *v, const char *s)
{
    return v != NULL && v->type == JSON_STRING && v->len == strlen(s) &&
           memcmp(v->text, s, v->len) == 0;
}
