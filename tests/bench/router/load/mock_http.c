/*
 * mock_http: an engine's HTTP face without an engine, for bare proxies to stand before.
 *
 *   mock_http --port N [--step-ms N]
 *
 * It answers every POST; the body says how, as it does to mock_decode, in its last "mock{...}":
 * `repeat` tokens, interval_ms between them. With "stream":true they come as server-sent events of
 * the size that a chat chunk has, else as one JSON object. Ticks are on a grid of --step-ms, so
 * that all streams move together, as an engine's do. max_tokens bounds them, so that who asks a
 * prefill engine for one token gets one. GETs are answered with 200 and what gateways want to know
 * of an SGLang engine.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/base/clock.h"
#include "common/base/flags.h"

enum { HEAD_MAX = 16384, FDS_MAX = 16384, TAIL = 4096 };

struct stream {
    char head[HEAD_MAX];
    size_t head_len, body_left, tail_len;
    bool in_body, post, streams;
    char tail[TAIL + 1]; /* the end of the body */
    long left, interval_ms;
    uint64_t next_us;
    bool started;
};

static struct {
    int64_t port, step_ms;
} options;

static struct stream *streams[FDS_MAX];
static int epoll, fd_max;

static const char event[] =
    "data: {\"id\":\"chatcmpl-0123456789abcdef01234567\",\"object\":\"chat.completion.chunk\","
    "\"created\":1700000000,\"model\":\"mock\",\"choices\":[{\"index\":0,\"delta\":{\"content\":"
    "\" word\"},\"logprobs\":null,\"finish_reason\":null,\"matched_stop\":null}]}\n\n";
static const char answer[] =
    "{\"id\":\"chatcmpl-0123456789abcdef01234567\",\"object\":\"chat.completion\",\"created\":"
    "1700000000,\"model\":\"mock\",\"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\","
    "\"content\":\"Hello!\",\"reasoning_content\":null,\"tool_calls\":null},\"logprobs\":null,"
    "\"finish_reason\":\"stop\",\"matched_stop\":1}],\"usage\":{\"prompt_tokens\":12,"
    "\"total_tokens\":16,\"completion_tokens\":4}}";

static const char about[] =
    "{\"object\":\"list\",\"data\":[{\"id\":\"mock\",\"object\":\"model\",\"owned_by\":\"sglang\"}]"
    ","
    "\"model_path\":\"mock\",\"served_model_name\":\"mock\",\"max_running_requests\":100000}";

static void put(int fd, const char *data, size_t len)
{
    if (send(fd, data, len, MSG_NOSIGNAL) < (ssize_t)len)
        shutdown(fd, SHUT_RDWR); /* nobody reads: this is a test's tool, it does not queue */
}

static void put_chunk(int fd, const char *data, size_t len)
{
    char out[1024];
    int n = snprintf(out, sizeof(out), "%zx\r\n%.*s\r\n", len, (int)len, data);

    put(fd, out, (size_t)n);
}

static long number(const char *text, const char *key, long absent)
{
    const char *at = strstr(text, key);

    if (at == NULL)
        return absent;
    at += strlen(key);
    return strtol(at + strcspn(at, "0123456789\n"), NULL, 10);
}

static uint64_t grid(uint64_t us)
{
    uint64_t step = (uint64_t)options.step_ms * 1000;

    return step == 0 ? us : (us + step / 2) / step * step;
}

static void reply(int fd, struct stream *s)
{
    char head[256];

    s->head_len = s->tail_len = 0;
    s->in_body = false;
    if (!s->post || !s->streams) {
        const char *body = s->post ? answer : about;
        int n = snprintf(head, sizeof(head),
                         "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
                         "Content-Length: %zu\r\n\r\n",
                         strlen(body));
        char out[2048];

        n = snprintf(out, sizeof(out), "%.*s%s", n, head, body);
        put(fd, out, (size_t)n);
        return;
    }
    s->left = number(s->tail, "repeat", 4);
    if (number(s->tail, "\"max_tokens\"", s->left) < s->left)
        s->left = number(s->tail, "\"max_tokens\"", 0);
    s->interval_ms = number(s->tail, "interval_ms", 0);
    s->started = false;
    s->next_us = clock_now_us();
}

static void tick(int fd, struct stream *s, uint64_t now)
{
    static const char head[] = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
                               "Transfer-Encoding: chunked\r\n\r\n";

    if (!s->started)
        put(fd, head, sizeof(head) - 1);
    s->started = true;
    put_chunk(fd, event, sizeof(event) - 1);
    if (--s->left > 0) {
        s->next_us = s->interval_ms == 0 ? now : grid(now + (uint64_t)s->interval_ms * 1000);
        return;
    }
    s->next_us = 0;
    put(fd, "e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n", strlen("e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"));
}

/* The end of the body holds the directive and "stream". */
static void keep_tail(struct stream *s, const char *p, size_t n)
{
    if (n >= TAIL) {
        memcpy(s->tail, p + n - TAIL, TAIL);
        s->tail_len = TAIL;
    } else {
        size_t over = s->tail_len + n > TAIL ? s->tail_len + n - TAIL : 0;

        memmove(s->tail, s->tail + over, s->tail_len - over);
        memcpy(s->tail + s->tail_len - over, p, n);
        s->tail_len += n - over;
    }
    s->tail[s->tail_len] = '\0';
}

static void read_head(struct stream *s)
{
    const char *length;

    length = strcasestr(s->head, "\r\ncontent-length:");
    s->post = strncmp(s->head, "POST", 4) == 0;
    s->body_left = length != NULL ? strtoul(length + 17, NULL, 10) : 0;
    s->in_body = true;
    s->tail_len = 0;
}

static void take(int fd, struct stream *s, const char *p, size_t n)
{
    while (n > 0) {
        size_t k;

        if (!s->in_body) {
            s->head[s->head_len++] = *p++;
            s->head[s->head_len] = '\0';
            n--;
            if (s->head_len + 1 == HEAD_MAX)
                shutdown(fd, SHUT_RDWR);
            if (s->head_len + 1 == HEAD_MAX)
                return;
            if (s->head_len < 4 || memcmp(s->head + s->head_len - 4, "\r\n\r\n", 4) != 0)
                continue;
            read_head(s);
        }
        k = n < s->body_left ? n : s->body_left;
        keep_tail(s, p, k);
        s->body_left -= k;
        p += k;
        n -= k;
        if (s->body_left == 0) {
            s->streams = strstr(s->tail, "\"stream\": true") != NULL ||
                         strstr(s->tail, "\"stream\":true") != NULL;
            reply(fd, s);
        }
    }
}

static void readable(int fd)
{
    static char data[1 << 18];
    ssize_t n = recv(fd, data, sizeof(data), MSG_DONTWAIT);

    if (n > 0) {
        take(fd, streams[fd], data, (size_t)n);
    } else if (n == 0 || errno != EAGAIN) {
        free(streams[fd]);
        streams[fd] = NULL;
        close(fd);
    }
}

static void accept_all(int listener)
{
    int fd, one = 1;

    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
        struct epoll_event e = {.events = EPOLLIN, .data.fd = fd};

        if (fd >= FDS_MAX || (streams[fd] = calloc(1, sizeof(**streams))) == NULL) {
            close(fd);
            continue;
        }
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
        fd_max = fd > fd_max ? fd : fd_max;
        epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &e);
    }
}

static void serve(int listener)
{
    for (;;) {
        uint64_t now = clock_now_us(), next = now + 1000000;
        struct epoll_event events[256];
        int k;

        for (int fd = 0; fd <= fd_max; fd++) {
            struct stream *s = streams[fd];

            while (s != NULL && s->next_us != 0 && s->next_us <= now)
                tick(fd, s, now);
            if (s != NULL && s->next_us != 0 && s->next_us < next)
                next = s->next_us;
        }
        k = epoll_wait(epoll, events, 256, (int)((next - now + 999) / 1000));
        for (int i = 0; i < k; i++)
            if (events[i].data.fd == listener)
                accept_all(listener);
            else
                readable(events[i].data.fd);
    }
}

int main(int argc, char **argv)
{
    static const struct flag flags[] = {
        {"port", FLAG_INT, &options.port, 1, 65535, .arg = "N", .help = "on loopback"},
        {"step-ms", FLAG_INT, &options.step_ms, 0, 10000, .arg = "N", .help = "the grid; 0: none"},
        {NULL},
    };
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), one = 1;
    struct epoll_event e = {.events = EPOLLIN, .data.fd = listener};
    struct status st;

    if (flags_parse(flags, argc, argv, NULL, NULL, &st) != ST_OK) {
        fprintf(stderr, "mock_http: %s\n", st.msg);
        return 1;
    }
    (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
    a.sin_port = htons((uint16_t)options.port);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
    epoll = epoll_create1(EPOLL_CLOEXEC);
    if (bind(listener, (struct sockaddr *)&a, sizeof(a)) != 0 || listen(listener, 4096) != 0 ||
        epoll_ctl(epoll, EPOLL_CTL_ADD, listener, &e) != 0) {
        fprintf(stderr, "mock_http: port %lld: %s\n", (long long)options.port, strerror(errno));
        return 1;
    }
    serve(listener);
}
