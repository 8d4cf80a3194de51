/*
 * file: whole small files into memory, and whether one has changed.
 */
#ifndef BATON_COMMON_BASE_FILE_H
#define BATON_COMMON_BASE_FILE_H

#include <stdbool.h>
#include <sys/types.h>
#include <time.h>

#include "common/base/buf.h"
#include "common/base/status.h"

/**
 * Appends the contents of a file.
 * @param max_bytes  larger files are refused
 * @return ST_OK; ST_INVALID naming the path and the reason
 */
enum status_code file_read(const char *path, size_t max_bytes, struct buf *out, struct status *st);

/* Tells one version of a file from another. Zero: there is none. */
struct file_stamp {
    struct timespec changed;
    off_t size;
    ino_t inode;
};

/** Taken before a file is read, so that a later change is never missed. @return false with errno:
 * it cannot be looked at; *out is zero then */
bool file_stamp_take(const char *path, struct file_stamp *out);
bool file_stamp_same(const struct file_stamp *a, const struct file_stamp *b);

#endif
