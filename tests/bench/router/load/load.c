/*
 * router_load: a closed-loop HTTP load generator.
 *
 *   router_load --port N --body FILE [--connections N] [--seconds S] [--warmup-ms N] [--pid N]
 *               [--big-body FILE --big-connections N] [--header "Name: value"] [--tls on]
 *               [--every-us N]
 *
 * Every connection sends its request, reads the answer to its end and sends again, on one
 * kept-alive connection; with --every-us not before its next turn, and the turns of the connections
 * are spread evenly, so that two peers get the same requests at the same times, whatever each
 * costs. The big connections do the same with the other body and are told apart. The window begins
 * when every connection has had a first byte and the warm-up is over, and ends after --seconds. It
 * prints one JSON object: requests      answers of status 200 that ended in the window; refused: of
 * 429 and 503 errors        anything else, a connection that was cut included events        "data:"
 * lines in the window cpu_us        processor time of --pid in the window, all its threads rss_kb
 * memory of --pid at the end of the window, every connection still open latency_p50_us, _p99_us
 * request sent to its end; ttft_...: to the first byte of the body; refused_p50_us, _p99_us,
 * big_requests
 */
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <openssl/ssl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/base/clock.h"
#include "common/base/flags.h"

enum { HEAD_MAX = 8192, READ_MAX = 65536, SAMPLES_MAX = 1 << 20, CHUNK_LINE_MAX = 32 };

struct connection {
    int fd;
    SSL *ssl;
    const char *request; /* what it sends again and again */
    size_t request_len, sent;
    bool big, wants_out, had_first;
    char head[HEAD_MAX];
    size_t head_len;
    int status; /* 0: the head is not complete */
    bool chunked;
    size_t body_left;          /* of the body, or of the chunk */
    char line[CHUNK_LINE_MAX]; /* a chunk's size, as far as it is there */
    size_t line_len;
    bool last_chunk;
    unsigned event_at; /* letters of "data:" seen */
    uint64_t sent_us, first_us, resume_us, due_us;
};

struct samples {
    uint32_t *us; /* [SAMPLES_MAX] */
    size_t n;
};

static struct {
    const char *body, *big_body, *path, *header;
    int64_t port, connections, big_connections, seconds, warmup_ms, pid, pause_ms, every_us;
    bool tls;
} options = {.path = "/v1/chat/completions",
             .connections = 1,
             .seconds = 5,
             .warmup_ms = 500,
             .pause_ms = 30,
             .header = "X-Bench: 1"};

static SSL_CTX *tls;
static int epoll;
static bool measuring;
static size_t n_had_first;
static uint64_t n_requests, n_refused, n_errors, n_events, n_big;
static struct samples latency, ttft, refused;

static void die(const char *what)
{
    fprintf(stderr, "router_load: %s: %s\n", what, strerror(errno));
    exit(1);
}

static void sample(struct samples *s, uint64_t us)
{
    if (s->us == NULL)
        s->us = malloc(SAMPLES_MAX * sizeof(*s->us));
    if (s->us != NULL && s->n < SAMPLES_MAX)
        s->us[s->n++] = us < UINT32_MAX ? (uint32_t)us : UINT32_MAX;
}

static int by_value(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;

    return x < y ? -1 : x > y;
}

static void show_samples(const char *name, struct samples *s)
{
    if (s->n == 0)
        return;
    qsort(s->us, s->n, sizeof(*s->us), by_value);
    printf(",\"%s_p50_us\":%u,\"%s_p99_us\":%u", name, s->us[s->n / 2], name,
           s->us[(s->n - 1) * 99 / 100]);
}

/* ---- the process that is measured ------------------------------------------------------------ */

/* Of all threads, in us; the kernel counts it in ns. */
static double cpu_us(void)
{
    char path[300];
    struct dirent *e;
    double sum = 0;
    DIR *d;

    snprintf(path, sizeof(path), "/proc/%lld/task", (long long)options.pid);
    d = options.pid > 0 ? opendir(path) : NULL;
    while (d != NULL && (e = readdir(d)) != NULL) {
        unsigned long long ns = 0;
        FILE *f;

        snprintf(path, sizeof(path), "/proc/%lld/task/%s/schedstat", (long long)options.pid,
                 e->d_name);
        f = e->d_name[0] == '.' ? NULL : fopen(path, "r");
        if (f == NULL)
            continue;
        if (fscanf(f, "%llu", &ns) == 1)
            sum += (double)ns / 1e3;
        fclose(f);
    }
    if (d != NULL)
        closedir(d);
    return sum;
}

static long rss_kb(void)
{
    char path[64];
    long pages = 0;
    FILE *f;

    snprintf(path, sizeof(path), "/proc/%lld/statm", (long long)options.pid);
    f = options.pid > 0 ? fopen(path, "r") : NULL;
    if (f != NULL && fscanf(f, "%*s %ld", &pages) != 1)
        pages = 0;
    if (f != NULL)
        fclose(f);
    return pages * (sysconf(_SC_PAGESIZE) / 1024);
}

/* ---- connections ----------------------------------------------------------------------------- */

static void watch(struct connection *c, bool out)
{
    struct epoll_event e = {.events = EPOLLIN | (out ? EPOLLOUT : 0), .data.ptr = c};

    if (c->wants_out != out && epoll_ctl(epoll, EPOLL_CTL_MOD, c->fd, &e) != 0)
        die("epoll_ctl");
    c->wants_out = out;
}

static void send_some(struct connection *c)
{
    while (c->sent < c->request_len) {
        const char *at = c->request + c->sent;
        size_t left = c->request_len - c->sent;
        ssize_t n =
            c->ssl != NULL ? SSL_write(c->ssl, at, (int)left) : send(c->fd, at, left, MSG_NOSIGNAL);

        if (n <= 0)
            break;
        c->sent += (size_t)n;
    }
    watch(c, c->sent < c->request_len);
}

static void begin(struct connection *c)
{
    c->sent = c->head_len = c->line_len = 0;
    c->status = 0;
    c->first_us = 0;
    c->event_at = 0;
    c->sent_us = clock_now_us();
    send_some(c);
}

static void open_connection(struct connection *c, const char *request, size_t len, bool big)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct epoll_event e = {.events = EPOLLIN, .data.ptr = c};
    int one = 1;

    a.sin_port = htons((uint16_t)options.port);
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    c->request = request;
    c->request_len = len;
    c->big = big;
    if (c->fd < 0 || connect(c->fd, (struct sockaddr *)&a, sizeof(a)) != 0)
        die("connect");
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
    if (tls != NULL) {
        c->ssl = SSL_new(tls);
        SSL_set_mode(c->ssl, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
        SSL_set_fd(c->ssl, c->fd);
        if (SSL_connect(c->ssl) != 1)
            die("TLS handshake");
    }
    fcntl(c->fd, F_SETFL, O_NONBLOCK);
    if (epoll_ctl(epoll, EPOLL_CTL_ADD, c->fd, &e) != 0)
        die("epoll_ctl");
    begin(c);
}

/* ---- answers --------------------------------------------------------------------------------- */

static void ended(struct connection *c)
{
    uint64_t now = clock_now_us();
    bool busy = c->status == 429 || c->status == 503;

    if (!measuring) {
        ;
    } else if (c->big) {
        n_big++;
    } else if (c->status == 200) {
        n_requests++;
        sample(&latency, now - c->sent_us);
        sample(&ttft, c->first_us - c->sent_us);
    } else if (busy) {
        n_refused++;
        sample(&refused, now - c->sent_us);
    } else {
        n_errors++;
    }
    c->due_us += (uint64_t)options.every_us;
    if (busy)
        c->resume_us = now + (uint64_t)options.pause_ms * 1000;
    else if (options.every_us > 0 && c->due_us > now)
        c->resume_us = c->due_us;
    else
        begin(c);
}

static void count_events(struct connection *c, const char *p, size_t n)
{
    static const char word[] = "data:";

    for (size_t i = 0; i < n; i++) {
        c->event_at = p[i] == word[c->event_at] ? c->event_at + 1 : p[i] == 'd';
        if (c->event_at == sizeof(word) - 1) {
            n_events += measuring;
            c->event_at = 0;
        }
    }
}

static void read_head(struct connection *c)
{
    const char *length;

    c->status = atoi(c->head + 9);
    length = strcasestr(c->head, "\r\ncontent-length:");
    c->chunked = strcasestr(c->head, "\r\ntransfer-encoding: chunked") != NULL;
    c->body_left = length != NULL ? strtoul(length + 17, NULL, 10) : 0;
    c->last_chunk = false;
}

/* The size line before a chunk, or what follows one. @return bytes used */
static size_t chunk_line(struct connection *c, const char *p, size_t n)
{
    size_t i = 0;

    while (i < n && p[i++] != '\n')
        if (c->line_len + 1 < sizeof(c->line))
            c->line[c->line_len++] = p[i - 1];
    if (p[i - 1] != '\n')
        return i;
    c->line[c->line_len] = '\0';
    if (c->line_len > 1) { /* not the empty line after a chunk */
        c->body_left = strtoul(c->line, NULL, 16);
        c->last_chunk = c->body_left == 0;
    } else if (c->last_chunk) {
        c->line_len = 0;
        ended(c);
        return n; /* nothing follows: requests are not pipelined */
    }
    c->line_len = 0;
    return i;
}

static void take(struct connection *c, const char *p, size_t n)
{
    if (!c->had_first) {
        c->had_first = true;
        n_had_first++;
    }
    while (c->status == 0 && n > 0) {
        if (c->head_len + 1 == HEAD_MAX)
            die("a long head");
        c->head[c->head_len++] = *p++;
        n--;
        c->head[c->head_len] = '\0';
        if (c->head_len >= 4 && memcmp(c->head + c->head_len - 4, "\r\n\r\n", 4) == 0)
            read_head(c);
    }
    if (c->status != 0 && c->first_us == 0 && (n > 0 || c->body_left == 0))
        c->first_us = clock_now_us();
    while (n > 0) {
        size_t k = n < c->body_left ? n : c->body_left;

        if (c->chunked && c->body_left == 0) {
            k = chunk_line(c, p, n);
        } else if (k == 0) {
            return;
        } else {
            count_events(c, p, k);
            c->body_left -= k;
            if (!c->chunked && c->body_left == 0) {
                ended(c);
                return;
            }
        }
        p += k;
        n -= k;
    }
}

static void receive(struct connection *c)
{
    static char data[READ_MAX];
    ssize_t n;

    for (;;) {
        n = c->ssl != NULL ? SSL_read(c->ssl, data, sizeof(data))
                           : recv(c->fd, data, sizeof(data), 0);
        if (n <= 0)
            break;
        take(c, data, (size_t)n);
        if (n < (ssize_t)sizeof(data) && c->ssl == NULL)
            return;
    }
    if (n == 0 || (c->ssl == NULL && errno != EAGAIN && errno != EINTR)) {
        n_errors++;
        epoll_ctl(epoll, EPOLL_CTL_DEL, c->fd, NULL);
    }
}

/* ---- the run --------------------------------------------------------------------------------- */

static char *make_request(const char *file, size_t *len)
{
    FILE *f = fopen(file, "r");
    char *out;
    size_t n, at;
    long size;

    if (f == NULL || fseek(f, 0, SEEK_END) != 0 || (size = ftell(f)) < 0)
        die(file);
    rewind(f);
    out = malloc((size_t)size + 1024);
    if (out == NULL)
        die("memory");
    at = (size_t)snprintf(out, 1024,
                          "POST %s HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\n"
                          "%s\r\nContent-Length: %ld\r\n\r\n",
                          options.path, options.header, size);
    n = fread(out + at, 1, (size_t)size, f);
    fclose(f);
    *len = at + n;
    return out;
}

/* How long nobody needs to send: others' answers are waited for at most 5 ms. */
static struct timespec idle_time(const struct connection *all, size_t n)
{
    uint64_t now = clock_now_us(), us = 5000;

    for (size_t i = 0; i < n && options.every_us > 0; i++)
        if (all[i].resume_us != 0)
            us = all[i].resume_us <= now       ? 0
                 : all[i].resume_us - now < us ? all[i].resume_us - now
                                               : us;
    return (struct timespec){0, (long)us * 1000};
}

static void turn(struct connection *all, size_t n)
{
    struct epoll_event events[256];
    struct timespec idle = idle_time(all, n);
    int k = epoll_pwait2(epoll, events, 256, &idle, NULL);
    static uint64_t last_us;
    uint64_t now;

    for (int i = 0; i < k; i++) {
        struct connection *c = events[i].data.ptr;

        if (events[i].events & EPOLLOUT)
            send_some(c);
        if (events[i].events & ~(uint32_t)EPOLLOUT)
            receive(c);
    }
    now = clock_now_us();
    if (now - last_us < 1000 && options.every_us == 0)
        return;
    last_us = now;
    for (size_t i = 0; i < n; i++)
        if (all[i].resume_us != 0 && all[i].resume_us <= now) {
            all[i].resume_us = 0;
            begin(&all[i]);
        }
}

static void run(struct connection *all, size_t n)
{
    uint64_t start, now, patience = clock_now_us() + 60000000;
    double cpu;

    for (size_t i = 0; i < n; i++)
        all[i].due_us = clock_now_us() + i * (uint64_t)options.every_us / n;
    while (n_had_first < n && clock_now_us() < patience)
        turn(all, n);
    for (now = clock_now_us(), start = now; now < start + (uint64_t)options.warmup_ms * 1000;
         now = clock_now_us())
        turn(all, n);
    cpu = cpu_us();
    measuring = true;
    for (start = now; now < start + (uint64_t)options.seconds * 1000000; now = clock_now_us())
        turn(all, n);
    cpu = cpu_us() - cpu;
    printf("{\"requests\":%llu,\"refused\":%llu,\"errors\":%llu,\"events\":%llu,\"seconds\":%.3f,"
           "\"big_requests\":%llu,\"cpu_us\":%.0f,\"rss_kb\":%ld",
           (unsigned long long)n_requests, (unsigned long long)n_refused,
           (unsigned long long)n_errors, (unsigned long long)n_events, (double)(now - start) / 1e6,
           (unsigned long long)n_big, cpu, rss_kb());
    show_samples("latency", &latency);
    show_samples("ttft", &ttft);
    show_samples("refused", &refused);
    printf("}\n");
}

int main(int argc, char **argv)
{
    static const struct flag flags[] = {
        {"port", FLAG_INT, &options.port, 1, 65535, .arg = "N", .help = "on loopback"},
        {"path", FLAG_STRING, &options.path, .arg = "PATH", .help = "POST there"},
        {"body", FLAG_STRING, &options.body, .arg = "FILE", .help = "of the request"},
        {"header", FLAG_STRING, &options.header, .arg = "LINE", .help = "one more"},
        {"connections", FLAG_INT, &options.connections, 1, 65536, .arg = "N", .help = "at once"},
        {"big-body", FLAG_STRING, &options.big_body, .arg = "FILE", .help = "of other requests"},
        {"big-connections", FLAG_INT, &options.big_connections, 0, 1024, .arg = "N",
         .help = "that send it"},
        {"seconds", FLAG_INT, &options.seconds, 1, 600, .arg = "N", .help = "the window"},
        {"warmup-ms", FLAG_INT, &options.warmup_ms, 0, 60000, .arg = "N", .help = "before it"},
        {"pause-ms", FLAG_INT, &options.pause_ms, 0, 60000, .arg = "N", .help = "after a refusal"},
        {"every-us", FLAG_INT, &options.every_us, 0, 60000000, .arg = "N",
         .help = "from one request of a connection to its next, at least; 0: at once"},
        {"pid", FLAG_INT, &options.pid, 0, 1 << 30, .arg = "N", .help = "whose time and memory"},
        {"tls", FLAG_BOOL, &options.tls, .help = "speak TLS; no certificate is checked"},
        {NULL},
    };
    struct connection *all;
    char *request, *big = NULL;
    size_t n, len, big_len = 0;
    struct status st;

    if (flags_parse(flags, argc, argv, NULL, NULL, &st) != ST_OK || options.body == NULL) {
        fprintf(stderr, "router_load: %s\n", options.body == NULL ? "--body is missing" : st.msg);
        return 1;
    }
    request = make_request(options.body, &len);
    if (options.big_connections > 0)
        big = make_request(options.big_body, &big_len);
    tls = options.tls ? SSL_CTX_new(TLS_client_method()) : NULL;
    epoll = epoll_create1(EPOLL_CLOEXEC);
    n = (size_t)(options.connections + options.big_connections);
    all = calloc(n, sizeof(*all));
    if (all == NULL)
        die("memory");
    for (size_t i = 0; i < n; i++) {
        bool is_big = i >= (size_t)options.connections;

        open_connection(&all[i], is_big ? big : request, is_big ? big_len : len, is_big);
        if (i % 64 == 63)
            turn(all, i + 1);
    }
    run(all, n);
    return 0;
}
