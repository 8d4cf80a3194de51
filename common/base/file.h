/*
 * file: whole small files into memory.
 */
#ifndef BATON_COMMON_BASE_FILE_H
#define BATON_COMMON_BASE_FILE_H

#include "common/base/buf.h"
#include "common/base/status.h"

/**
 * Appends the contents of a file.
 * @param max_bytes  larger files are refused
 * @return ST_OK; ST_INVALID naming the path and the reason
 */
enum status_code file_read(const char *path, size_t max_bytes, struct buf *out, struct status *st);

#endif
