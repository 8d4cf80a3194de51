/*
 * access_log: one JSON object a line for each answered request: who, what, how long, how much.
 * Never text of prompts or answers.
 *
 * Lines are gathered per thread and written together, when there are many or on flush.
 *
 * Threads   access_log_open at start; each thread has a writer of its own.
 */
#ifndef BATON_ROUTER_ACCESS_LOG_H
#define BATON_ROUTER_ACCESS_LOG_H

#include "common/base/buf.h"
#include "router/request_note.h"

struct access_writer {
    int fd; /* -1: off */
    struct buf lines;
};

/** @param path  NULL: off; "-": standard output; else appended to. @param fd  out, -1 when off */
enum status_code access_log_open(const char *path, int *fd, struct status *st);
void access_log_close(int fd);

void access_log_write(struct access_writer *w, struct http_exchange *x, int status, uint64_t bytes,
                      uint64_t us);
void access_log_flush(struct access_writer *w);
void access_log_deinit(struct access_writer *w);

#endif
