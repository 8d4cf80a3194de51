#include "common/base/file.h"

#include <errno.h>
#include <stdio.h>
#include <sys/stat.h>

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

bool file_stamp_take(const char *path, struct file_stamp *out)
{
    struct stat s;

    *out = (struct file_stamp){0};
    if (stat(path, &s) != 0)
        return false;
    *out = (struct file_stamp){s.st_mtim, s.st_size, s.st_ino};
    return true;
}

bool file_stamp_same(const struct file_stamp *a, const struct file_stamp *b)
{
    return a->changed.tv_sec == b->changed.tv_sec && a->changed.tv_nsec == b->changed.tv_nsec &&
           a->size == b->size && a->inode == b->inode;
}
