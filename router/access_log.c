#include "router/access_log.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "common/base/json.h"
#include "common/base/utf8.h"

enum { FLUSH_BYTES = 32 << 10, PATH_SHOWN_MAX = 256 };

enum status_code access_log_open(const char *path, int *fd, struct status *st)
{
    *fd = -1;
    if (path == NULL)
        return status_ok(st);
    *fd = strcmp(path, "-") == 0 ? dup(STDOUT_FILENO)
                                 : open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0640);
    if (*fd < 0)
        return status_set(st, ST_INVALID, "--access-log %s: %s", path, strerror(errno));
    return status_ok(st);
}

void access_log_close(int fd)
{
    if (fd >= 0)
        close(fd);
}

static const char *method_name(enum http_method m)
{
    switch (m) {
    case HTTP_GET:
        return "GET";
    case HTTP_HEAD:
        return "HEAD";
    case HTTP_POST:
        return "POST";
    case HTTP_DELETE:
        return "DELETE";
    case HTTP_OPTIONS:
        return "OPTIONS";
    default:
        return "?";
    }
}

static void put_time(struct buf *out)
{
    struct timespec now;
    struct tm tm;
    char text[32];

    clock_gettime(CLOCK_REALTIME, &now);
    gmtime_r(&now.tv_sec, &tm);
    strftime(text, sizeof(text), "%Y-%m-%dT%H:%M:%S", &tm);
    buf_printf(out, "{\"time\":\"%s.%03ldZ\"", text, now.tv_nsec / 1000000);
}

void access_log_write(struct access_writer *w, struct http_exchange *x, int status, uint64_t bytes,
                      uint64_t us)
{
    const struct http_request *r = http_exchange_request(x);
    const struct request_note *n = request_note(x);
    struct buf *out = &w->lines;
    size_t path;
    char trace[TRACE_PARENT_LEN + 1];

    if (w->fd < 0)
        return;
    path = strnlen(r->path.data, PATH_SHOWN_MAX);
    path = utf8_valid_prefix(r->path.data, path);
    put_time(out);
    buf_printf(out, ",\"client\":\"%s\",\"method\":\"%s\",\"path\":", http_exchange_peer(x),
               method_name(r->method));
    json_write_string(out, r->path.data, path);
    buf_printf(out, ",\"status\":%d,\"bytes\":%llu,\"seconds\":%.6f,\"key\":\"%s\"", status,
               (unsigned long long)bytes, (double)us / 1e6, n->who.name);
    if (n->request_id[0] != '\0')
        buf_printf(out, ",\"request_id\":\"%s\"", n->request_id);
    if (n->unix_ns != 0) {
        trace_parent(&n->trace, trace);
        buf_printf(out, ",\"trace_id\":\"%.32s\"", trace + 3);
    }
    if (n->prompt_tokens > 0)
        buf_printf(out,
                   ",\"prompt_tokens\":%u,\"cached_tokens\":%u,\"completion_tokens\":%u,"
                   "\"ttft_seconds\":%.6f,\"finish\":\"%s\"",
                   n->prompt_tokens, n->cached_tokens, n->completion_tokens,
                   (double)n->ttft_us / 1e6, n->finish);
    buf_puts(out, "}\n");
    if (out->len >= FLUSH_BYTES)
        access_log_flush(w);
}

void access_log_flush(struct access_writer *w)
{
    if (w->lines.len > 0 && w->fd >= 0)
        (void)!write(w->fd, w->lines.data,
                     w->lines.len); /* a full disk costs lines, not requests */
    w->lines.len = 0;
}

void access_log_deinit(struct access_writer *w)
{
    access_log_flush(w);
    buf_deinit(&w->lines);
}
