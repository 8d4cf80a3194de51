#include "node.h"

#include <dirent.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include <cmocka.h>

enum op {
    OP_SETENV,
    OP_START,
    OP_STOP,
    OP_SLAB,
    OP_FILL,
    OP_FILL_RANGE,
    OP_READ,
    OP_COUNT,
    OP_DESCRIBE,
    OP_DESCRIBE_TO,
    OP_REVOKE,
    OP_WRITER,
    OP_OPEN,
    OP_CLOSE,
    OP_CLOSE_WAIT,
    OP_PUT,
    OP_HURRY,
    OP_CANCEL,
    OP_WAIT,
    OP_PEEK,
    OP_VERIFY,
    OP_TRANSPORT,
    OP_FLIPS,
    OP_LINK,
    OP_FDS,
    OP_END
};

struct request {
    enum op op;
    int a, b;
    uint64_t x, y;
    uint32_t n_groups;
    size_t len; /* of the payload that follows */
};

struct reply {
    struct status st;
    struct node_result result;
    struct transfer_link link;
    uint64_t value;
    size_t len;
};

/* ---- the node's side ---- */

struct slot {
    struct node_result result;
    uint32_t *crc;
};

static struct transfer *transfer;
static struct transfer_peer *peer;
static struct {
    uint8_t *base;
    size_t bytes;
    bool from_heap;
} slabs[TRANSFER_SLABS_MAX];
static struct slot slots[NODE_PUTS_MAX + 1]; /* the last one: verification */
static uint32_t n_ended;
static bool closed;
static struct {
    bool lost, gone;
} writers[NODE_WRITERS_MAX];                             /* by name, modulo */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* guards slots, closed and writers */
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;

uint8_t node_byte(uint64_t seed, uint64_t off)
{
    uint64_t z = (off >> 3) * 0x9E3779B97F4A7C15ull + seed;

    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    return (uint8_t)(z >> (8 * (off & 7)));
}

static void on_done(void *arg, const struct transfer_result *r)
{
    struct slot *s = arg;

    pthread_mutex_lock(&lock);
    s->result.status = r->status;
    s->result.bytes = r->bytes;
    s->result.n_groups = r->n_groups;
    s->result.calls++;
    s->result.nth = ++n_ended;
    free(s->crc);
    s->crc = malloc(r->n_groups * sizeof(uint32_t) + 1);
    if (r->n_groups > 0)
        memcpy(s->crc, r->crc, r->n_groups * sizeof(uint32_t));
    pthread_cond_broadcast(&changed);
    pthread_mutex_unlock(&lock);
}

static void on_closed(void *arg)
{
    (void)arg;
    pthread_mutex_lock(&lock);
    closed = true;
    pthread_cond_broadcast(&changed);
    pthread_mutex_unlock(&lock);
}

static void on_writer_end(void *arg, uint64_t writer, bool proven)
{
    (void)arg;
    pthread_mutex_lock(&lock);
    writers[writer % NODE_WRITERS_MAX].lost = true;
    writers[writer % NODE_WRITERS_MAX].gone |= proven;
    pthread_cond_broadcast(&changed);
    pthread_mutex_unlock(&lock);
}

/* Waits until *what is not zero, at most the bound. */
static void await_slot(struct slot *s, bool *flag, struct status *st)
{
    struct timespec until;

    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += NODE_WAIT_S / 2;
    status_ok(st);
    pthread_mutex_lock(&lock);
    while (s != NULL ? s->result.calls == 0 : !*flag)
        if (pthread_cond_timedwait(&changed, &lock, &until) != 0) {
            status_set(st, ST_TIMEOUT, "no callback in %d s", NODE_WAIT_S / 2);
            break;
        }
    pthread_mutex_unlock(&lock);
}

static void do_slab(const struct request *q, struct reply *a)
{
    void *base = NULL;

    slabs[q->a].from_heap = q->b;
    slabs[q->a].bytes = q->x;
    if (q->b) {
        base = aligned_alloc(4096, q->x);
        memset(base, 0, q->x);
        transfer_slab_register(transfer, q->a, base, q->x, &a->st);
    } else {
        transfer_slab_alloc(transfer, q->a, q->x, &base, &a->st);
    }
    slabs[q->a].base = base;
}

static void do_stop(void)
{
    transfer_stop(transfer);
    transfer = NULL;
    peer = NULL;
    for (int i = 0; i < TRANSFER_SLABS_MAX; i++)
        if (slabs[i].from_heap)
            free(slabs[i].base);
    memset(slabs, 0, sizeof(slabs));
}

static void clear_slots(void)
{
    for (int i = 0; i <= NODE_PUTS_MAX; i++)
        free(slots[i].crc);
    memset(slots, 0, sizeof(slots));
    closed = false;
}

static uint64_t count_fds(void)
{
    DIR *d = opendir("/proc/self/fd");
    uint64_t n = 0;

    while (readdir(d) != NULL)
        n++;
    closedir(d);
    return n;
}

/* Mappings of shared memory: ours and those of peers. */
static uint64_t count_segments(void)
{
    FILE *f = fopen("/proc/self/maps", "r");
    char line[512];
    uint64_t n = 0;

    while (fgets(line, sizeof(line), f) != NULL)
        n += strstr(line, "/dev/shm") != NULL || strstr(line, "SYSV") != NULL ||
             strstr(line, "memfd") != NULL;
    fclose(f);
    return n;
}

static uint64_t count_other(int slab, uint8_t value)
{
    uint64_t n = 0;

    for (size_t i = 0; i < slabs[slab].bytes; i++)
        n += slabs[slab].base[i] != value;
    return n;
}

static void do_start(const struct request *q, const char *devices, struct reply *a)
{
    struct transfer_options opt = {.transport = (enum transfer_kind)q->a,
                                   .require = (enum transfer_kind)q->b,
                                   .devices = q->len > 0 ? devices : NULL,
                                   .rate_limit = q->x};

    transfer_start(&opt, &transfer, &a->st);
}

/* Runs one request; out is the reply's payload. */
static void serve(const struct request *q, char *in, struct reply *a, struct buf *out)
{
    size_t n_pieces = (q->len - (q->op == OP_VERIFY ? q->n_groups * sizeof(uint32_t) : 0)) /
                      sizeof(struct transfer_piece);
    const struct transfer_piece *pieces = (void *)in;
    struct slot *slot = &slots[q->op == OP_VERIFY ? NODE_PUTS_MAX : q->x % NODE_PUTS_MAX];
    char text[128];

    switch (q->op) {
    case OP_SETENV:
        setenv(in, in + strlen(in) + 1, 1);
        break;
    case OP_START:
        do_start(q, in, a);
        break;
    case OP_STOP:
        do_stop();
        break;
    case OP_SLAB:
        do_slab(q, a);
        break;
    case OP_FILL:
        for (size_t i = 0; i < slabs[q->a].bytes; i++)
            slabs[q->a].base[i] = q->b ? (uint8_t)q->x : node_byte(q->x, i);
        break;
    case OP_FILL_RANGE:
        memset(slabs[q->a].base + q->x, q->b, q->y);
        break;
    case OP_READ:
        buf_append(out, slabs[q->a].base + q->x, q->y);
        break;
    case OP_COUNT:
        a->value = count_other(q->a, (uint8_t)q->b);
        break;
    case OP_DESCRIBE:
        transfer_describe(transfer, out, &a->st);
        break;
    case OP_DESCRIBE_TO:
        transfer_describe_to(transfer, on_writer_end, NULL, &a->value, out, &a->st);
        pthread_mutex_lock(&lock);
        memset(&writers[a->value % NODE_WRITERS_MAX], 0, sizeof(writers[0]));
        pthread_mutex_unlock(&lock);
        break;
    case OP_WRITER:
        if (q->a)
            await_slot(NULL,
                       q->b ? &writers[q->x % NODE_WRITERS_MAX].gone
                            : &writers[q->x % NODE_WRITERS_MAX].lost,
                       &a->st);
        pthread_mutex_lock(&lock);
        a->value =
            q->b ? writers[q->x % NODE_WRITERS_MAX].gone : writers[q->x % NODE_WRITERS_MAX].lost;
        pthread_mutex_unlock(&lock);
        break;
    case OP_REVOKE:
        a->value = transfer_revoke(transfer, q->x);
        break;
    case OP_OPEN:
        clear_slots();
        transfer_peer_open(transfer, "peer", in, q->len, &peer, &a->st);
        break;
    case OP_CLOSE:
        transfer_peer_close(peer, on_closed, NULL);
        break;
    case OP_CLOSE_WAIT:
        await_slot(NULL, &closed, &a->st);
        break;
    case OP_PUT:
        if (slot->result.calls > 0) {
            status_set(&a->st, ST_INTERNAL, "the test uses put id %d twice", (int)q->x);
            break;
        }
        transfer_put(peer, q->y, pieces, n_pieces, q->n_groups, on_done, slot, &a->st);
        break;
    case OP_HURRY:
        transfer_hurry(peer, q->x);
        break;
    case OP_CANCEL:
        transfer_cancel(peer, q->x);
        break;
    case OP_VERIFY:
        slot->result.calls = 0;
        if (transfer_verify(transfer, pieces, n_pieces, (void *)(pieces + n_pieces), q->n_groups,
                            on_done, slot, &a->st) != ST_OK)
            break;
        /* fall through */
    case OP_WAIT:
        await_slot(slot, NULL, &a->st);
        a->result = slot->result;
        buf_append(out, slot->crc, slot->result.n_groups * sizeof(uint32_t));
        break;
    case OP_PEEK:
        pthread_mutex_lock(&lock);
        a->result = slot->result;
        pthread_mutex_unlock(&lock);
        break;
    case OP_TRANSPORT:
        transfer_peer_transport(peer, text, sizeof(text));
        buf_append(out, text, strlen(text) + 1);
        break;
    case OP_LINK:
        a->value = transfer_peer_link(peer, &a->link);
        break;
    case OP_FLIPS:
        transfer_inject_flips(transfer, q->a);
        break;
    case OP_FDS:
        a->value = q->a ? count_segments() : count_fds();
        break;
    case OP_END:
        if (transfer != NULL)
            do_stop();
        clear_slots();
        break;
    }
}

static bool read_all(int fd, void *data, size_t n)
{
    for (char *p = data; n > 0;) {
        ssize_t got = recv(fd, p, n, 0);

        if (got <= 0)
            return false;
        p += got;
        n -= (size_t)got;
    }
    return true;
}

static bool write_all(int fd, const void *data, size_t n)
{
    for (const char *p = data; n > 0;) {
        ssize_t put = send(fd, p, n, MSG_NOSIGNAL);

        if (put <= 0)
            return false;
        p += put;
        n -= (size_t)put;
    }
    return true;
}

static void node_main(int fd)
{
    struct request q;

    while (read_all(fd, &q, sizeof(q))) {
        struct reply a = {.st.code = ST_OK};
        struct buf out = {0};
        char *in = malloc(q.len + 1);

        if (q.len > 0 && !read_all(fd, in, q.len))
            exit(3);
        in[q.len] = '\0';
        serve(&q, in, &a, &out);
        a.len = out.len;
        write_all(fd, &a, sizeof(a));
        write_all(fd, out.data, out.len);
        buf_deinit(&out);
        free(in);
        if (q.op == OP_END)
            exit(0);
    }
    exit(0); /* the test is gone */
}

/* ---- the test's side ---- */

struct node node_fork_in(const char *netns)
{
    struct timeval bound = {.tv_sec = NODE_WAIT_S};
    struct node n;
    int fds[2];

    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
    setsockopt(fds[0], SOL_SOCKET, SO_RCVTIMEO, &bound, sizeof(bound));
    fflush(NULL);
    n.pid = fork();
    assert_true(n.pid >= 0);
    if (n.pid == 0) {
        close(fds[0]);
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (netns != NULL) {
            char path[128];
            int ns;

            snprintf(path, sizeof(path), "/run/netns/%s", netns);
            ns = open(path, O_RDONLY | O_CLOEXEC);
            if (ns < 0 || setns(ns, CLONE_NEWNET) != 0)
                _exit(4);
            close(ns);
        }
        node_main(fds[1]);
    }
    close(fds[1]);
    n.fd = fds[0];
    return n;
}

struct node node_fork(void)
{
    return node_fork_in(NULL);
}

void node_freeze(struct node *n)
{
    int status;

    kill(n->pid, SIGSTOP);
    assert_int_equal(waitpid(n->pid, &status, WUNTRACED), n->pid);
    assert_true(WIFSTOPPED(status));
}

void node_thaw(struct node *n)
{
    kill(n->pid, SIGCONT);
}

void node_kill(struct node *n)
{
    kill(n->pid, SIGKILL);
    waitpid(n->pid, NULL, 0);
    close(n->fd);
}

/* One request and its reply. payload of the reply goes to out, which must hold it. */
static struct reply ask(struct node *n, struct request q, const void *in, void *out, size_t cap)
{
    struct reply a;

    if (!write_all(n->fd, &q, sizeof(q)) || (q.len > 0 && !write_all(n->fd, in, q.len)) ||
        !read_all(n->fd, &a, sizeof(a)))
        fail_msg("the node does not answer request %d", q.op);
    if (a.len > 0) {
        assert_true(a.len <= cap);
        assert_true(read_all(n->fd, out, a.len));
    }
    return a;
}

static void must(struct reply a)
{
    if (a.st.code != ST_OK)
        fail_msg("%s: %s", status_name(a.st.code), a.st.msg);
}

void node_end(struct node *n)
{
    int status;

    must(ask(n, (struct request){.op = OP_END}, NULL, NULL, 0));
    waitpid(n->pid, &status, 0);
    close(n->fd);
    assert_int_equal(status, 0);
}

void node_setenv(struct node *n, const char *name, const char *value)
{
    char both[512];
    int len = snprintf(both, sizeof(both), "%s%c%s", name, '\0', value);

    must(ask(n, (struct request){.op = OP_SETENV, .len = (size_t)len}, both, NULL, 0));
}

enum status_code node_start(struct node *n, const struct transfer_options *opt, struct status *st)
{
    struct request q = {
        .op = OP_START, .a = opt->transport, .b = opt->require, .x = opt->rate_limit};

    q.len = opt->devices != NULL ? strlen(opt->devices) : 0;
    *st = ask(n, q, opt->devices, NULL, 0).st;
    return st->code;
}

void node_stop(struct node *n)
{
    must(ask(n, (struct request){.op = OP_STOP}, NULL, NULL, 0));
}

void node_slab(struct node *n, int index, size_t bytes, bool from_heap)
{
    must(ask(n, (struct request){.op = OP_SLAB, .a = index, .b = from_heap, .x = bytes}, NULL, NULL,
             0));
}

void node_fill(struct node *n, int slab, uint64_t seed, bool same)
{
    must(ask(n, (struct request){.op = OP_FILL, .a = slab, .b = same, .x = seed}, NULL, NULL, 0));
}

void node_fill_range(struct node *n, int slab, uint64_t off, uint64_t bytes, uint8_t value)
{
    must(ask(n, (struct request){.op = OP_FILL_RANGE, .a = slab, .b = value, .x = off, .y = bytes},
             NULL, NULL, 0));
}

void node_read(struct node *n, int slab, uint64_t off, size_t bytes, void *out)
{
    must(
        ask(n, (struct request){.op = OP_READ, .a = slab, .x = off, .y = bytes}, NULL, out, bytes));
}

uint64_t node_count_other(struct node *n, int slab, uint8_t value)
{
    return ask(n, (struct request){.op = OP_COUNT, .a = slab, .b = value}, NULL, NULL, 0).value;
}

size_t node_describe(struct node *n, void *out, size_t cap)
{
    struct reply a = ask(n, (struct request){.op = OP_DESCRIBE}, NULL, out, cap);

    must(a);
    return a.len;
}

size_t node_describe_to(struct node *n, uint64_t *writer, void *out, size_t cap)
{
    struct reply a = ask(n, (struct request){.op = OP_DESCRIBE_TO}, NULL, out, cap);

    must(a);
    *writer = a.value;
    return a.len;
}

bool node_revoke(struct node *n, uint64_t writer)
{
    return ask(n, (struct request){.op = OP_REVOKE, .x = writer}, NULL, NULL, 0).value != 0;
}

void node_writer_wait(struct node *n, uint64_t writer, bool proven)
{
    must(
        ask(n, (struct request){.op = OP_WRITER, .a = 1, .b = proven, .x = writer}, NULL, NULL, 0));
}

bool node_writer_gone(struct node *n, uint64_t writer)
{
    return ask(n, (struct request){.op = OP_WRITER, .b = 1, .x = writer}, NULL, NULL, 0).value != 0;
}

enum status_code node_open(struct node *n, const void *desc, size_t len, struct status *st)
{
    *st = ask(n, (struct request){.op = OP_OPEN, .len = len}, desc, NULL, 0).st;
    return st->code;
}

void node_close_begin(struct node *n)
{
    must(ask(n, (struct request){.op = OP_CLOSE}, NULL, NULL, 0));
}

void node_close_wait(struct node *n)
{
    must(ask(n, (struct request){.op = OP_CLOSE_WAIT}, NULL, NULL, 0));
}

void node_close(struct node *n)
{
    node_close_begin(n);
    node_close_wait(n);
}

enum status_code node_put_of(struct node *n, uint64_t id, uint64_t handoff,
                             const struct transfer_piece *pieces, size_t n_pieces,
                             uint32_t n_groups, struct status *st)
{
    struct request q = {.op = OP_PUT,
                        .x = id,
                        .y = handoff,
                        .n_groups = n_groups,
                        .len = n_pieces * sizeof(*pieces)};

    *st = ask(n, q, pieces, NULL, 0).st;
    return st->code;
}

enum status_code node_put(struct node *n, uint64_t id, const struct transfer_piece *pieces,
                          size_t n_pieces, uint32_t n_groups, struct status *st)
{
    return node_put_of(n, id, id, pieces, n_pieces, n_groups, st);
}

void node_hurry(struct node *n, uint64_t handoff)
{
    must(ask(n, (struct request){.op = OP_HURRY, .x = handoff}, NULL, NULL, 0));
}

void node_cancel(struct node *n, uint64_t id)
{
    must(ask(n, (struct request){.op = OP_CANCEL, .x = id}, NULL, NULL, 0));
}

struct node_result node_wait(struct node *n, uint64_t id, uint32_t *crc)
{
    uint32_t *room = malloc(1 << 20);
    struct reply a = ask(n, (struct request){.op = OP_WAIT, .x = id}, NULL, room, 1 << 20);

    if (crc != NULL)
        memcpy(crc, room, a.len);
    free(room);
    must(a);
    return a.result;
}

struct node_result node_peek(struct node *n, uint64_t id)
{
    return ask(n, (struct request){.op = OP_PEEK, .x = id}, NULL, NULL, 0).result;
}

struct node_result node_verify(struct node *n, const struct transfer_piece *pieces, size_t n_pieces,
                               const uint32_t *expected, uint32_t n_groups)
{
    struct request q = {.op = OP_VERIFY, .n_groups = n_groups};
    uint32_t *room = malloc(1 << 20);
    struct buf in = {0};
    struct reply a;

    buf_append(&in, pieces, n_pieces * sizeof(*pieces));
    buf_append(&in, expected, n_groups * sizeof(*expected));
    q.len = in.len;
    a = ask(n, q, in.data, room, 1 << 20);
    buf_deinit(&in);
    free(room);
    if (a.st.code != ST_OK)
        a.result.status = a.st;
    return a.result;
}

void node_transport(struct node *n, char *out, size_t cap)
{
    must(ask(n, (struct request){.op = OP_TRANSPORT}, NULL, out, cap));
}

bool node_link(struct node *n, struct transfer_link *out)
{
    struct reply a = ask(n, (struct request){.op = OP_LINK}, NULL, NULL, 0);

    *out = a.link;
    return a.value != 0;
}

void node_flips(struct node *n, int count)
{
    must(ask(n, (struct request){.op = OP_FLIPS, .a = count}, NULL, NULL, 0));
}

int node_count_segments(struct node *n)
{
    return (int)ask(n, (struct request){.op = OP_FDS, .a = 1}, NULL, NULL, 0).value;
}

int node_count_fds(struct node *n)
{
    return (int)ask(n, (struct request){.op = OP_FDS}, NULL, NULL, 0).value;
}
