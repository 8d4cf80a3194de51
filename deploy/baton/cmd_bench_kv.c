/*
 * baton bench-kv: how fast page sets move between two workers, beside what the machine can do.
 */
#include "deploy/baton/commands.h"

#include <errno.h>
#include <netdb.h>
#include <sched.h>
#include <semaphore.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <signal.h>
#include <unistd.h>

#include "common/base/clock.h"
#include "common/base/flags.h"
#include "common/base/log.h"
#include "common/transfer/part.h"
#include "deploy/baton/bench_kv.h"

enum { ROUNDS_MAX = 100, SIZES_MAX = 8 };

struct options {
    const char *transport, *model, *layout, *tokens, *devices, *connect;
    int64_t rounds, slab_mb, listen_port;
    bool json;
};

/* One connected pair. */
struct bench {
    const struct options *o;
    enum transfer_kind kind;
    bool local; /* the receiver is a child on this machine */
    int control;
    struct transfer *transfer;
    struct transfer_peer *peer;
    uint8_t *slab, *scratch; /* ours; what plain copies write */
    uint64_t slab_bytes;
    char via[128];
    sem_t done;
    struct transfer_result result;
    uint64_t ended_ns; /* when the last part of a handoff had been written */
    uint32_t *crc;     /* of the last put */
};

/* Figures of one page set, a value per round. */
struct figures {
    int n;
    double put[ROUNDS_MAX], verify[ROUNDS_MAX], handoff[ROUNDS_MAX], tail[ROUNDS_MAX],
        copy[ROUNDS_MAX], stream[ROUNDS_MAX], raw[ROUNDS_MAX], cpu_from[ROUNDS_MAX],
        cpu_to[ROUNDS_MAX];
};

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

static double median(const double *values, int n)
{
    double sorted[ROUNDS_MAX];

    memcpy(sorted, values, (size_t)n * sizeof(*sorted));
    qsort(sorted, (size_t)n, sizeof(*sorted), by_value);
    return sorted[n / 2];
}

static double least(const double *values, int n)
{
    double best = values[0];

    for (int i = 1; i < n; i++)
        if (values[i] < best)
            best = values[i];
    return best;
}

static void report(const struct bench *b, const char *name, double value, const char *unit,
                   const char *peer, double peer_value)
{
    if (b->o->json) {
        printf("{\"name\": \"%s\", \"transport\": \"%s\", \"value\": %.6g, \"unit\": \"%s\"", name,
               b->via, value, unit);
        if (peer != NULL)
            printf(", \"peer\": \"%s\", \"peer_value\": %.6g, \"ratio\": %.4g", peer, peer_value,
                   value / peer_value);
        printf("}\n");
    } else if (peer != NULL) {
        printf("%-34s %9.3f %-5s  %s %.3f, ratio %.2f\n", name, value, unit, peer, peer_value,
               value / peer_value);
    } else {
        printf("%-34s %9.3f %s\n", name, value, unit);
    }
    fflush(stdout);
}

static void on_put(void *arg, const struct transfer_result *r)
{
    struct bench *b = arg;

    b->result = *r;
    memcpy(b->crc, r->crc, r->n_groups * sizeof(*b->crc));
    sem_post(&b->done);
}

static enum status_code put(struct bench *b, const struct kv_set *set, struct status *st)
{
    if (transfer_put(b->peer, 1, set->pieces, set->n_pieces, set->n_groups, on_put, b, st) != ST_OK)
        return st->code;
    while (sem_wait(&b->done) != 0)
        ;
    *st = b->result.status;
    return st->code;
}

static enum status_code dial(const char *host, const char *port, int *fd, struct status *st)
{
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *list = NULL;
    int rc = getaddrinfo(host, port, &hints, &list);

    *fd = -1;
    for (struct addrinfo *a = list; rc == 0 && a != NULL && *fd < 0; a = a->ai_next) {
        *fd = socket(a->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
        if (*fd >= 0 && connect(*fd, a->ai_addr, a->ai_addrlen) != 0) {
            close(*fd);
            *fd = -1;
        }
    }
    if (rc == 0)
        freeaddrinfo(list);
    if (*fd < 0)
        return status_set(st, ST_UNAVAILABLE, "nothing answers at %s:%s", host, port);
    return status_ok(st);
}

/* The pieces through a plain socket: writev and readv, nothing else. */
static enum status_code raw_round(struct bench *b, const struct kv_set *set, double *seconds,
                                  struct status *st)
{
    struct kv_request q = {.op = KV_OP_RAW};
    char host[256] = "127.0.0.1", port[8];
    double value;
    int fd;

    if (kv_node_ask(b->control, &q, set, NULL, &value, NULL, st) != ST_OK)
        return st->code;
    if (b->o->connect != NULL)
        snprintf(host, sizeof(host), "%.*s", (int)strcspn(b->o->connect, ":"), b->o->connect);
    snprintf(port, sizeof(port), "%.0f", value);
    if (dial(host, port, &fd, st) != ST_OK)
        return st->code;
    *seconds = kv_raw_send(fd, set, b->slab);
    close(fd);
    return *seconds > 0 ? status_ok(st)
                        : status_set(st, ST_UNAVAILABLE, "plain socket: %s", strerror(errno));
}

/* The n-th place of the slabs for a page set. Each measurement has one that none has touched
 * lately: what it reads and writes is in no cache. */
static enum status_code set_at(const struct bench *b, struct kv_set *set, uint32_t tokens,
                               uint64_t n, struct status *st)
{
    bool pro = strcmp(b->o->model, "pro") == 0;
    enum kv_layout layout = strcmp(b->o->layout, "pages") == 0 ? KV_LAYOUT_PAGES : KV_LAYOUT_LAYERS;
    uint64_t bytes = kv_set_bytes(pro, tokens, layout), n_places = b->slab_bytes / bytes;

    kv_set_deinit(set);
    if (n_places == 0)
        return status_set(st, ST_INVALID, "%u tokens need %llu bytes: raise --slab-mb", tokens,
                          (unsigned long long)bytes);
    if (!kv_set_init(set, pro, tokens, layout, n % n_places * bytes, n + 1))
        return status_set(st, ST_EXHAUSTED, "no memory for the page set");
    return status_ok(st);
}

enum { PLACES_PER_ROUND = 5 };

static enum status_code put_round(struct bench *b, const struct kv_set *set, struct figures *f,
                                  struct status *st)
{
    struct kv_request cpu = {.op = KV_OP_CPU}, verify = {.op = KV_OP_VERIFY};
    double from = kv_cpu_seconds(), to = 0, after = 0;
    int i = f->n;

    if (kv_node_ask(b->control, &cpu, NULL, NULL, &to, NULL, st) != ST_OK ||
        put(b, set, st) != ST_OK)
        return st->code;
    f->put[i] = (double)b->result.elapsed_us * 1e-6;
    f->cpu_from[i] = (kv_cpu_seconds() - from) / f->put[i];
    if (kv_node_ask(b->control, &cpu, NULL, NULL, &after, NULL, st) != ST_OK)
        return st->code;
    f->cpu_to[i] = (after - to) / f->put[i];
    if (kv_node_ask(b->control, &verify, set, b->crc, &f->verify[i], NULL, st) != ST_OK)
        return status_wrap(st, "verification");
    return st->code;
}

/* A part of a handoff: kv_sender.c sends what a first token waits for in such. */
struct part {
    struct bench *b;
    struct kv_set set; /* pieces borrowed, with groups of their own */
    uint32_t *crc;
};

static void on_part(void *arg, const struct transfer_result *r)
{
    struct part *p = arg;

    if (r->status.code != ST_OK)
        p->b->result.status = r->status;
    memcpy(p->crc, r->crc, r->n_groups * sizeof(*p->crc));
    p->b->ended_ns = clock_now_ns();
    sem_post(&p->b->done);
}

/* @return how many parts */
static uint32_t cut(struct bench *b, const struct kv_set *set, struct part *parts)
{
    struct transfer_place at = {0}, end;
    uint32_t n = 0;

    for (; at.group < set->n_groups; at = end) {
        end = transfer_part(set->pieces, set->n_pieces, set->n_groups, at, TRANSFER_PART_BYTES);
        parts[n++] = (struct part){b,
                                   {.pieces = set->pieces + at.piece,
                                    .n_pieces = end.piece - at.piece,
                                    .n_groups = end.group - at.group},
                                   b->crc + at.group};
    }
    return n;
}

/* As a handoff goes: each part is compared while the next is on its way. From the first call to the
 * last comparison's end. */
static enum status_code handoff_round(struct bench *b, const struct kv_set *set, struct figures *f,
                                      struct status *st)
{
    struct kv_request verify = {.op = KV_OP_VERIFY};
    struct part *parts = calloc(set->n_groups, sizeof(*parts));
    uint64_t from, end;
    uint32_t n, posted = 0;

    if (parts == NULL)
        return status_set(st, ST_EXHAUSTED, "no memory");
    n = cut(b, set, parts);
    b->result.status.code = ST_OK;
    from = clock_now_ns();
    for (status_ok(st); posted < n && st->code == ST_OK; posted++)
        transfer_put(b->peer, 1, parts[posted].set.pieces, parts[posted].set.n_pieces,
                     parts[posted].set.n_groups, on_part, &parts[posted], st);
    posted -= st->code != ST_OK;
    for (uint32_t i = 0; i < posted; i++) { /* they end in their order */
        while (sem_wait(&b->done) != 0)
            ;
        if (st->code == ST_OK && b->result.status.code != ST_OK)
            *st = b->result.status;
        if (st->code == ST_OK && !kv_node_send(b->control, &verify, &parts[i].set, parts[i].crc))
            status_set(st, ST_UNAVAILABLE, "the other process hung up");
    }
    for (uint32_t i = 0; i < posted && st->code == ST_OK; i++)
        kv_node_reply(b->control, NULL, NULL, st);
    end = clock_now_ns();
    f->handoff[f->n] = (double)(end - from) * 1e-9;
    f->tail[f->n] = (double)(end - b->ended_ns) * 1e-9;
    free(parts);
    return st->code;
}

static enum status_code round_of(struct bench *b, struct kv_set *set, uint32_t tokens,
                                 struct figures *f, struct status *st)
{
    uint64_t place = (uint64_t)f->n * PLACES_PER_ROUND;

    if (set_at(b, set, tokens, place, st) != ST_OK || put_round(b, set, f, st) != ST_OK ||
        set_at(b, set, tokens, place + 1, st) != ST_OK)
        return st->code;
    f->copy[f->n] = kv_raw_copy(set, b->scratch, b->slab, false);
    if (set_at(b, set, tokens, place + 2, st) != ST_OK)
        return st->code;
    f->stream[f->n] = kv_raw_copy(set, b->scratch, b->slab, true);
    if (set_at(b, set, tokens, place + 3, st) != ST_OK ||
        raw_round(b, set, &f->raw[f->n], st) != ST_OK ||
        set_at(b, set, tokens, place + 4, st) != ST_OK || handoff_round(b, set, f, st) != ST_OK)
        return st->code;
    f->n++;
    return st->code;
}

static void report_set(const struct bench *b, const struct kv_set *set, uint32_t tokens,
                       const struct figures *f)
{
    double gb = (double)set->bytes * 1e-9, put = gb / median(f->put, f->n);
    double stream = gb / median(f->stream, f->n), raw = gb / median(f->raw, f->n);
    bool shm = strncmp(b->via, "shm", 3) == 0;
    char name[64];

#define NAME(what)                                                                                 \
    (snprintf(name, sizeof(name), "%s/%uk/%s", what, tokens / 1024, b->o->layout), name)
    if (!b->o->json)
        printf("%u tokens of %s by %s: %zu pieces, %.1f MB, over %s\n", tokens, b->o->model,
               b->o->layout, set->n_pieces, gb * 1e3, b->via);
    report(b, NAME("put"), put, "GB/s", shm ? "streaming copy" : "plain socket",
           shm ? stream : raw);
    report(b, NAME("put_time"), median(f->put, f->n) * 1e3, "ms", NULL, 0);
    report(b, NAME("handoff_time"), median(f->handoff, f->n) * 1e3, "ms",
           shm ? "streaming copy" : "plain socket",
           (shm ? median(f->stream, f->n) : median(f->raw, f->n)) * 1e3);
    report(b, NAME("handoff_added"), (median(f->handoff, f->n) - median(f->put, f->n)) * 1e6, "us",
           NULL, 0);
    report(b, NAME("handoff_tail"), median(f->tail, f->n) * 1e6, "us", NULL, 0);
    /* Writing and comparing need a core each; the best rounds are those in which they had it. */
    report(b, NAME("handoff_added_best"), (least(f->handoff, f->n) - least(f->put, f->n)) * 1e6,
           "us", NULL, 0);
    report(b, NAME("handoff_tail_best"), least(f->tail, f->n) * 1e6, "us", NULL, 0);
    report(b, NAME("verify"), gb / median(f->verify, f->n), "GB/s", NULL, 0);
    report(b, NAME("memcpy"), gb / median(f->copy, f->n), "GB/s", NULL, 0);
    report(b, NAME("streaming_copy"), stream, "GB/s", NULL, 0);
    report(b, NAME("plain_socket"), raw, "GB/s", NULL, 0);
    report(b, NAME("sender_cores"), median(f->cpu_from, f->n), "cores", NULL, 0);
    report(b, NAME("receiver_cores"), median(f->cpu_to, f->n), "cores", NULL, 0);
#undef NAME
}

static enum status_code run_set(struct bench *b, uint32_t tokens, struct status *st)
{
    struct figures *f = calloc(1, sizeof(*f));
    uint32_t *crc = realloc(b->crc, (tokens / 256 + 1) * sizeof(*crc));
    struct kv_set set = {0};

    if (crc != NULL)
        b->crc = crc;
    if (f == NULL || crc == NULL)
        status_set(st, ST_EXHAUSTED, "no memory");
    else
        status_ok(st);
    while (st->code == ST_OK && f->n < b->o->rounds)
        round_of(b, &set, tokens, f, st);
    if (st->code == ST_OK)
        report_set(b, &set, tokens, f);
    kv_set_deinit(&set);
    free(f);
    return st->code;
}

static int by_us(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

    return (x > y) - (x < y);
}

/* How long a put of one small piece takes, from call to callback. */
static enum status_code latency(struct bench *b, struct status *st)
{
    enum { N = 1000 };
    struct transfer_piece piece = {.bytes = 1168};
    struct kv_set set = {.pieces = &piece, .n_pieces = 1, .n_groups = 1, .bytes = piece.bytes};
    static uint64_t us[N];

    b->crc = calloc(1, sizeof(*b->crc));
    if (b->crc == NULL)
        return status_set(st, ST_EXHAUSTED, "no memory");
    for (int i = 0; i < N; i++) {
        uint64_t from = clock_now_ns();

        if (put(b, &set, st) != ST_OK)
            return st->code;
        us[i] = clock_now_ns() - from;
    }
    qsort(us, N, sizeof(us[0]), by_us);
    transfer_peer_transport(b->peer, b->via, sizeof(b->via));
    report(b, "latency/p50", (double)us[N / 2] * 1e-3, "us", NULL, 0);
    report(b, "latency/p99", (double)us[N * 99 / 100] * 1e-3, "us", NULL, 0);
    return st->code;
}

static enum status_code idle(struct bench *b, struct status *st)
{
    struct kv_request cpu = {.op = KV_OP_CPU};
    double from = kv_cpu_seconds(), to, after;

    if (kv_node_ask(b->control, &cpu, NULL, NULL, &to, NULL, st) != ST_OK)
        return st->code;
    usleep(1000000);
    if (kv_node_ask(b->control, &cpu, NULL, NULL, &after, NULL, st) != ST_OK)
        return st->code;
    report(b, "idle/sender_cores", kv_cpu_seconds() - from, "cores", NULL, 0);
    report(b, "idle/receiver_cores", after - to, "cores", NULL, 0);
    return st->code;
}

static enum status_code open_pair(struct bench *b, struct status *st)
{
    struct transfer_options opt = {.transport = b->kind, .devices = b->o->devices};
    struct kv_request q = {
        .op = KV_OP_START, .transport = (int32_t)b->kind, .slab_bytes = b->slab_bytes};
    struct buf desc = {0};
    void *slab, *scratch;

    if (b->o->devices != NULL)
        snprintf(q.devices, sizeof(q.devices), "%s", b->o->devices);
    if (kv_node_ask(b->control, &q, NULL, NULL, NULL, &desc, st) != ST_OK)
        status_wrap(st, "receiver");
    else if (transfer_start(&opt, &b->transfer, st) == ST_OK &&
             transfer_slab_alloc(b->transfer, 0, b->slab_bytes, &slab, st) == ST_OK &&
             transfer_slab_alloc(b->transfer, 1, b->slab_bytes, &scratch, st) == ST_OK &&
             transfer_peer_open(b->transfer, "receiver", desc.data, desc.len, &b->peer, st) ==
                 ST_OK) {
        b->slab = slab;
        b->scratch = scratch;
        for (uint64_t i = 0; i < b->slab_bytes; i += 8)
            memcpy(b->slab + i, &(uint64_t){i * 0x9E3779B97F4A7C15u}, 8);
    }
    buf_deinit(&desc);
    return st->code;
}

static enum status_code run_all(struct bench *b, struct status *st)
{
    if (open_pair(b, st) != ST_OK || latency(b, st) != ST_OK)
        return st->code;
    for (const char *at = b->o->tokens; *at != '\0' && st->code == ST_OK;) {
        char *end;
        unsigned long tokens = strtoul(at, &end, 10);

        if (end == at || tokens == 0 || tokens > 1 << 20)
            return status_set(st, ST_INVALID, "--tokens %s: counts up to 1048576, with commas",
                              b->o->tokens);
        run_set(b, (uint32_t)tokens, st);
        at = end + (*end == ',');
    }
    return st->code == ST_OK ? idle(b, st) : st->code;
}

/* Every second of this process's cores, from the first or the second on: two workers of one machine
 * have cores of their own, and a scheduler that lets them share some shows in the figures. */
static void keep_cores(int first)
{
    cpu_set_t all, mine;
    int n = 0;

    CPU_ZERO(&mine);
    if (sched_getaffinity(0, sizeof(all), &all) != 0 || CPU_COUNT(&all) < 2)
        return;
    for (int i = 0; i < CPU_SETSIZE; i++)
        if (CPU_ISSET(i, &all) && n++ % 2 == first)
            CPU_SET(i, &mine);
    (void)sched_setaffinity(0, sizeof(mine), &mine);
}

/* A child that serves; it must be forked before UCX starts here. */
static enum status_code fork_receiver(int *control, pid_t *pid, struct status *st)
{
    int fds[2];

    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) != 0)
        return status_set(st, ST_EXHAUSTED, "socketpair: %s", strerror(errno));
    fflush(NULL);
    *pid = fork();
    if (*pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        close(fds[0]);
        keep_cores(1);
        _exit(kv_node_serve(fds[1]));
    }
    close(fds[1]);
    keep_cores(0);
    *control = fds[0];
    return *pid > 0 ? status_ok(st) : status_set(st, ST_EXHAUSTED, "fork: %s", strerror(errno));
}

static enum transfer_kind kind_of(const char *name)
{
    static const char *const names[] = {"auto", "rdma", "nvlink", "shm", "tcp"};
    int i = 0;

    while (strcmp(names[i], name) != 0)
        i++; /* the flag allows no other word */
    return (enum transfer_kind)i;
}

static int serve_others(uint16_t port)
{
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE}, *a = NULL;
    char text[8];
    const int one = 1;
    int listener = -1, fd, rc;

    snprintf(text, sizeof(text), "%u", port);
    if (getaddrinfo(NULL, text, &hints, &a) == 0) {
        listener = socket(a->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
        setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
        if (bind(listener, a->ai_addr, a->ai_addrlen) != 0 || listen(listener, 1) != 0) {
            close(listener);
            listener = -1;
        }
        freeaddrinfo(a);
    }
    if (listener < 0) {
        fprintf(stderr, "baton bench-kv: cannot listen on port %u: %s\n", port, strerror(errno));
        return 2;
    }
    fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    close(listener);
    rc = fd >= 0 ? kv_node_serve(fd) : 2;
    close(fd);
    return rc;
}

static int run_sender(const struct options *o)
{
    struct bench b = {.o = o, .kind = kind_of(o->transport), .local = o->connect == NULL};
    const char *colon = o->connect != NULL ? strrchr(o->connect, ':') : NULL;
    char host[256];
    struct status st;
    pid_t pid = 0;

    b.slab_bytes = (uint64_t)o->slab_mb << 20;
    sem_init(&b.done, 0, 0);
    if (b.local) {
        fork_receiver(&b.control, &pid, &st);
    } else if (colon == NULL) {
        status_set(&st, ST_INVALID, "--connect %s: expected HOST:PORT", o->connect);
    } else {
        snprintf(host, sizeof(host), "%.*s", (int)(colon - o->connect), o->connect);
        dial(host, colon + 1, &b.control, &st);
    }
    if (st.code == ST_OK)
        run_all(&b, &st);
    transfer_stop(b.transfer);
    free(b.crc);
    close(b.control);
    if (pid > 0)
        waitpid(pid, NULL, 0);
    if (st.code != ST_OK)
        fprintf(stderr, "baton bench-kv: %s\n", st.msg);
    return st.code == ST_OK ? 0 : 2;
}

int cmd_bench_kv(int argc, char **argv)
{
    struct options o = {.transport = "auto",
                        .model = "flash",
                        .layout = "pages",
                        .tokens = "1024,8192,32768",
                        .rounds = 9,
                        .slab_mb = 1024};
    const struct flag flags[] = {
        {"kv-transport", FLAG_CHOICE, &o.transport, .choices = "auto|rdma|nvlink|shm|tcp",
         .arg = "KIND", .help = "what may carry the pages"},
        {"kv-devices", FLAG_STRING, &o.devices, .arg = "LIST", .help = "mlx5_0:1,eth0"},
        {"model", FLAG_CHOICE, &o.model, .choices = "flash|pro", .arg = "MODEL",
         .help = "whose page size"},
        {"layout", FLAG_CHOICE, &o.layout, .choices = "pages|layers", .arg = "LAYOUT",
         .help = "a piece per logical page, or per layer and kind (of flash)"},
        {"tokens", FLAG_STRING, &o.tokens, .arg = "N,N", .help = "lengths of the page sets"},
        {"rounds", FLAG_INT, &o.rounds, 1, ROUNDS_MAX, .arg = "N",
         .help = "medians are of so many"},
        {"slab-mb", FLAG_INT, &o.slab_mb, 1, 1 << 18, .arg = "MIB",
         .help = "size of the slabs; three are made on one machine"},
        {"listen", FLAG_INT, &o.listen_port, 1, 65535, .arg = "PORT",
         .help = "be the receiver for one --connect from another host (trusted networks only)"},
        {"connect", FLAG_STRING, &o.connect, .arg = "HOST:PORT",
         .help = "send to the receiver there, instead of a child process here"},
        {"json", FLAG_BOOL, &o.json, .help = "one JSON object a line"},
        {0},
    };
    size_t n = 0;
    struct status st;

    if (flags_parse(flags, argc, argv, &n, NULL, &st) == ST_CANCELLED) {
        flags_help(flags,
                   "usage: baton bench-kv [flags]\n\nMoves page sets between two processes or "
                   "hosts, checksums on, beside plain copies and sockets.\n");
        return 0;
    }
    if (st.code != ST_OK) {
        fprintf(stderr, "baton bench-kv: %s\n", st.msg);
        return 2;
    }
    log_init("bench-kv", LOG_WARN);
    return o.listen_port != 0 ? serve_others((uint16_t)o.listen_port) : run_sender(&o);
}
