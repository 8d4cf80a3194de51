#include "router/trace.h"

#include <errno.h>
#include <netdb.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#include "common/base/buf.h"
#include "common/base/json.h"
#include "common/base/log.h"

enum {
    QUEUE_BYTES_MAX = 4 << 20,
    GATHER_MS = 1000, /* spans leave so long after the first of them */
    SEND_TIMEOUT_S = 5,
    STOP_TIMEOUT_S = 1
};

/* ---- context --------------------------------------------------------------------------------- */

static int hex_digit(char c)
{
    return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* Lower-case hex, as the standard asks. */
static bool read_hex(const char *s, uint8_t *out, size_t n)
{
    uint8_t any = 0;

    for (size_t i = 0; i < n; i++) {
        int hi = hex_digit(s[2 * i]), lo = hex_digit(s[2 * i + 1]);

        if (hi < 0 || lo < 0)
            return false;
        any |= out[i] = (uint8_t)(hi << 4 | lo);
    }
    return any != 0; /* all zero is no id */
}

static void write_hex(const uint8_t *in, size_t n, char *out)
{
    static const char digits[] = "0123456789abcdef";

    for (size_t i = 0; i < n; i++) {
        out[2 * i] = digits[in[i] >> 4];
        out[2 * i + 1] = digits[in[i] & 15];
    }
}

static void random_bytes(uint8_t *out, size_t n)
{
    static _Thread_local uint64_t state; /* one system call per thread, not per request */

    if (state == 0 && getrandom(&state, sizeof(state), 0) != sizeof(state))
        state = (uint64_t)(uintptr_t)&state ^ (uint64_t)time(NULL);
    for (size_t i = 0; i < n; i += 8) {
        uint64_t z = state += UINT64_C(0x9e3779b97f4a7c15);

        z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
        z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
        z ^= z >> 31;
        z |= z == 0;
        memcpy(out + i, &z, n - i < 8 ? n - i : 8);
    }
}

static bool read_parent(struct trace_context *t, const char *h, size_t len)
{
    int version = len >= 2 ? hex_digit(h[0]) * 16 + hex_digit(h[1]) : -1;
    int flags;

    if (len < TRACE_PARENT_LEN || hex_digit(h[0]) < 0 || hex_digit(h[1]) < 0 || version == 0xff ||
        (version == 0 && len != TRACE_PARENT_LEN) || (len > TRACE_PARENT_LEN && h[55] != '-') ||
        h[2] != '-' || h[35] != '-' || h[52] != '-' || hex_digit(h[53]) < 0 || hex_digit(h[54]) < 0)
        return false;
    flags = hex_digit(h[54]);
    t->sampled = flags & 1;
    return read_hex(h + 3, t->trace_id, 16) && read_hex(h + 36, t->parent_id, 8);
}

void trace_begin(struct trace_context *t, const char *header, size_t len, bool sampled)
{
    *t = (struct trace_context){0};
    t->has_parent = header != NULL && read_parent(t, header, len);
    if (!t->has_parent) {
        *t = (struct trace_context){.sampled = sampled};
        random_bytes(t->trace_id, sizeof(t->trace_id));
    }
    random_bytes(t->span_id, sizeof(t->span_id));
}

void trace_parent(const struct trace_context *t, char *out)
{
    memcpy(out, "00-", 3);
    write_hex(t->trace_id, 16, out + 3);
    out[35] = '-';
    write_hex(t->span_id, 8, out + 36);
    memcpy(out + 52, t->sampled ? "-01" : "-00", 4);
}

/* ---- exporting ------------------------------------------------------------------------------- */

struct trace_exporter {
    char *host, *port, *path;
    pthread_t thread;
    pthread_mutex_t lock; /* guards spans and stop */
    pthread_cond_t more;
    struct buf spans; /* JSON objects with commas between */
    bool stop;
    _Atomic uint64_t dropped;
    _Atomic uint64_t n_waiting;
    bool complained;
};

static void put_attribute(struct buf *out, const struct trace_attribute *a)
{
    buf_printf(out, "{\"key\":\"%s\",\"value\":{", a->key);
    if (a->text == NULL) {
        buf_printf(out, "\"intValue\":\"%lld\"}}", (long long)a->number);
    } else {
        buf_puts(out, "\"stringValue\":");
        json_write_string(out, a->text, strlen(a->text));
        buf_puts(out, "}}");
    }
}

static void put_id(struct buf *out, const char *before, const uint8_t *id, size_t n)
{
    buf_puts(out, before);
    buf_reserve(out, 2 * n);
    write_hex(id, n, out->data + out->len);
    out->len += 2 * n;
}

static void put_span(struct buf *out, const struct trace_context *t, const char *name,
                     uint64_t start, uint64_t end, const char *error,
                     const struct trace_attribute *attributes, size_t n)
{
    put_id(out, "{\"traceId\":\"", t->trace_id, 16);
    put_id(out, "\",\"spanId\":\"", t->span_id, 8);
    if (t->has_parent)
        put_id(out, "\",\"parentSpanId\":\"", t->parent_id, 8);
    buf_printf(out,
               "\",\"name\":\"%s\",\"kind\":2,\"startTimeUnixNano\":\"%llu\","
               "\"endTimeUnixNano\":\"%llu\",\"attributes\":[",
               name, (unsigned long long)start, (unsigned long long)end);
    for (size_t i = 0; i < n; i++) {
        if (i > 0)
            buf_puts(out, ",");
        put_attribute(out, &attributes[i]);
    }
    buf_printf(out, "],\"status\":{\"code\":%d", error == NULL ? 1 : 2);
    if (error != NULL) {
        buf_puts(out, ",\"message\":");
        json_write_string(out, error, strlen(error));
    }
    buf_puts(out, "}}");
}

void trace_export(struct trace_exporter *e, const struct trace_context *t, const char *name,
                  uint64_t start_unix_ns, uint64_t end_unix_ns, const char *error,
                  const struct trace_attribute *attributes, size_t n)
{
    if (e == NULL || !t->sampled)
        return;
    pthread_mutex_lock(&e->lock);
    if (e->spans.len > QUEUE_BYTES_MAX) {
        atomic_fetch_add(&e->dropped, 1);
    } else {
        if (e->spans.len > 0)
            buf_puts(&e->spans, ",");
        else
            pthread_cond_signal(&e->more);
        put_span(&e->spans, t, name, start_unix_ns, end_unix_ns, error, attributes, n);
        atomic_fetch_add(&e->n_waiting, 1);
    }
    pthread_mutex_unlock(&e->lock);
}

uint64_t trace_dropped(const struct trace_exporter *e)
{
    return e == NULL ? 0 : atomic_load(&e->dropped);
}

static int dial(const struct trace_exporter *e, int timeout_s)
{
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *list;
    struct timeval tv = {timeout_s, 0};
    int fd = -1;

    if (getaddrinfo(e->host, e->port, &hints, &list) != 0)
        return -1;
    for (struct addrinfo *a = list; a != NULL && fd < 0; a = a->ai_next) {
        fd = socket(a->ai_family, a->ai_socktype | SOCK_CLOEXEC, a->ai_protocol);
        if (fd < 0)
            continue;
        (void)setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &tv, sizeof(tv)); /* connect's too */
        (void)setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof(tv));
        if (connect(fd, a->ai_addr, a->ai_addrlen) != 0) {
            close(fd);
            fd = -1;
        }
    }
    freeaddrinfo(list);
    return fd;
}

static bool send_all(int fd, const char *data, size_t n)
{
    while (n > 0) {
        ssize_t k = send(fd, data, n, MSG_NOSIGNAL);

        if (k < 0 && errno == EINTR)
            continue;
        if (k <= 0)
            return false;
        data += k;
        n -= (size_t)k;
    }
    return true;
}

/* @return whether the collector said 2xx */
static bool post(const struct trace_exporter *e, struct buf *spans, int timeout_s)
{
    static const char before[] =
        "{\"resourceSpans\":[{\"resource\":{\"attributes\":[{\"key\":\"service.name\",\"value\":{"
        "\"stringValue\":\"baton-router\"}}]},\"scopeSpans\":[{\"scope\":{\"name\":\"baton\"},"
        "\"spans\":[",
                      after[] = "]}]}]}";
    struct buf head = {0};
    char reply[16] = "";
    int fd = dial(e, timeout_s);
    bool ok = false;

    if (fd < 0)
        return false;
    buf_printf(&head,
               "POST %s HTTP/1.1\r\nHost: %s:%s\r\nContent-Type: application/json\r\n"
               "Content-Length: %zu\r\nConnection: close\r\n\r\n",
               e->path, e->host, e->port, sizeof(before) - 1 + spans->len + sizeof(after) - 1);
    if (send_all(fd, head.data, head.len) && send_all(fd, before, sizeof(before) - 1) &&
        send_all(fd, spans->data, spans->len) && send_all(fd, after, sizeof(after) - 1))
        ok = recv(fd, reply, sizeof(reply) - 1, MSG_WAITALL) >= 12 && reply[9] == '2';
    close(fd);
    buf_deinit(&head);
    return ok;
}

static void *run(void *arg)
{
    struct trace_exporter *e = arg;
    bool stop = false;

    while (!stop) {
        struct buf spans;
        uint64_t n;

        pthread_mutex_lock(&e->lock);
        while (!e->stop && e->spans.len == 0)
            pthread_cond_wait(&e->more, &e->lock);
        if (!e->stop) { /* some more will come */
            struct timespec until;

            clock_gettime(CLOCK_MONOTONIC, &until);
            until.tv_sec += GATHER_MS / 1000;
            while (!e->stop && pthread_cond_timedwait(&e->more, &e->lock, &until) != ETIMEDOUT) {
            }
        }
        spans = e->spans;
        e->spans = (struct buf){0};
        n = atomic_exchange(&e->n_waiting, 0);
        stop = e->stop;
        pthread_mutex_unlock(&e->lock);
        if (spans.len > 0 && !post(e, &spans, stop ? STOP_TIMEOUT_S : SEND_TIMEOUT_S)) {
            atomic_fetch_add(&e->dropped, n);
            if (!e->complained)
                log_warn("traces: %s:%s takes none: spans are dropped", e->host, e->port);
            e->complained = true;
        } else if (spans.len > 0) {
            e->complained = false;
        }
        buf_deinit(&spans);
    }
    return NULL;
}

static void exporter_free(struct trace_exporter *e)
{
    buf_deinit(&e->spans);
    free(e->host);
    free(e->port);
    free(e->path);
    pthread_mutex_destroy(&e->lock);
    pthread_cond_destroy(&e->more);
    free(e);
}

/* "http://host:port/path" into its parts. */
static bool read_endpoint(struct trace_exporter *e, const char *endpoint)
{
    const char *host = endpoint + strlen("http://"), *slash, *colon;

    if (strncmp(endpoint, "http://", strlen("http://")) != 0)
        return false;
    slash = strchr(host, '/');
    slash = slash == NULL ? host + strlen(host) : slash;
    colon = memrchr(host, ':', (size_t)(slash - host));
    if (colon == NULL || colon == host || colon + 1 == slash || strpbrk(endpoint, " \r\n") != NULL)
        return false;
    e->host = strndup(host, (size_t)(colon - host));
    e->port = strndup(colon + 1, (size_t)(slash - colon - 1));
    e->path = strdup(slash[0] == '\0' || slash[1] == '\0' ? "/v1/traces" : slash);
    return e->host != NULL && e->port != NULL && e->path != NULL;
}

enum status_code trace_exporter_start(const char *endpoint, struct trace_exporter **out,
                                      struct status *st)
{
    struct trace_exporter *e = calloc(1, sizeof(*e));
    pthread_condattr_t attr;

    if (e == NULL)
        return status_set(st, ST_EXHAUSTED, "no memory for traces");
    pthread_mutex_init(&e->lock, NULL);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&e->more, &attr);
    pthread_condattr_destroy(&attr);
    if (!read_endpoint(e, endpoint)) {
        exporter_free(e);
        return status_set(st, ST_INVALID, "traces endpoint '%s': expected http://HOST:PORT[/PATH]",
                          endpoint);
    }
    if (pthread_create(&e->thread, NULL, run, e) != 0) {
        exporter_free(e);
        return status_set(st, ST_EXHAUSTED, "cannot start a thread for traces");
    }
    *out = e;
    return status_ok(st);
}

void trace_exporter_stop(struct trace_exporter *e)
{
    if (e == NULL)
        return;
    pthread_mutex_lock(&e->lock);
    e->stop = true;
    pthread_cond_broadcast(&e->more);
    pthread_mutex_unlock(&e->lock);
    pthread_join(e->thread, NULL);
    exporter_free(e);
}
