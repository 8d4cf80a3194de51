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
