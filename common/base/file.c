#include "common/base/file.h"

#include <errno.h>
#include <stdio.h>

enum status_code file_read(const char *path, size_t max_bytes, struct buf *out, struct status *st)
{
    FILE *f = fopen(path, "rb");
    size_t before = out->len, n;

    if (f == NULL)
        return status_set(st, ST_INVALID, "cannot open: %s", strerror(errno));
    status_ok(st);
    do {
        buf_reserve(out, 65536);
        n = fread(out->data + out->len, 1, 65536, f);
        out->len += n;
    } while (n > 0 && out->len - before <= max_bytes);
    if (ferror(f))
        status_set(st, ST_INVALID, "cannot read: %s", strerror(errno));
    else if (out->len - before > max_bytes)
        status_set(st, ST_INVALID, "larger than %zu bytes", max_bytes);
    fclose(f);
    return st->code;
}
