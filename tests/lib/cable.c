#include "cable.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { FRAME_MAX = 9100, QUEUE_MAX = 20000, BATCH = 64 };

struct frame {
    struct frame *next;
    uint64_t due_us;
    uint32_t bytes;
    uint8_t data[];
};

/* One direction: what came in at one end and is due at the other, in order of due times. */
struct lane {
    int from, to;
    struct frame *first, *last;
    uint32_t n;
    uint64_t free_us; /* when the wire has sent what it was given, at the rate it has */
};

struct relay {
    int control;
    uint64_t random;
    struct weather weather;
    struct cable_counts counts;
    struct lane lanes[2];
};

/* What the laying process asks: a weather to set, or, with count, the counts. */
struct question {
    bool count;
    struct weather weather;
};

static uint64_t now_us(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

static uint32_t draw(struct relay *r, uint32_t below)
{
    r->random = r->random * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(r->random >> 33) % below;
}

static bool happens(struct relay *r, uint32_t of_a_million)
{
    return of_a_million > 0 && draw(r, 1000000) < of_a_million;
}

/* ---- the process between ---- */

static void queue_insert(struct lane *l, struct frame *f)
{
    struct frame **at = &l->first;

    if (l->last != NULL && l->last->due_us <= f->due_us)
        at = &l->last->next;
    while (*at != NULL && (*at)->due_us <= f->due_us)
        at = &(*at)->next;
    f->next = *at;
    *at = f;
    if (f->next == NULL)
        l->last = f;
    l->n++;
}

static uint64_t due_us(struct relay *r, struct lane *l, uint32_t bytes)
{
    const struct weather *w = &r->weather;
    uint64_t now = now_us(), due, jitter;

    if (l->free_us < now)
        l->free_us = now;
    if (w->rate > 0)
        l->free_us += bytes * 1000000ull / w->rate;
    if (l->first != NULL && happens(r, w->reorder)) {
        r->counts.overtook++;
        return l->free_us;
    }
    jitter = w->jitter_us == 0 ? 0 : draw(r, 2 * w->jitter_us + 1);
    due = l->free_us + w->delay_us + jitter;
    due = due > l->free_us + w->jitter_us ? due - w->jitter_us : l->free_us;
    return l->last != NULL && l->last->due_us > due ? l->last->due_us : due;
}

static void queue_frame(struct relay *r, struct lane *l, const uint8_t *data, uint32_t bytes)
{
    struct frame *f;

    if (l->n >= QUEUE_MAX) {
        r->counts.overflowed++;
        return;
    }
    f = malloc(sizeof(*f) + bytes);
    if (f == NULL) {
        r->counts.overflowed++;
        return;
    }
    memcpy(f->data, data, bytes);
    f->bytes = bytes;
    f->due_us = due_us(r, l, bytes);
    if (happens(r, r->weather.flip)) {
        r->counts.flipped++;
        f->data[draw(r, bytes)] ^= (uint8_t)(1 << draw(r, 8));
    }
    queue_insert(l, f);
}

static void take_in(struct relay *r, struct lane *l)
{
    uint8_t data[FRAME_MAX];

    for (int i = 0; i < BATCH; i++) {
        ssize_t n = read(l->from, data, sizeof(data));

        if (n <= 0)
            return;
        r->counts.frames++;
        r->counts.bytes += (uint64_t)n;
        if (happens(r, r->weather.loss)) {
            r->counts.lost++;
            continue;
        }
        queue_frame(r, l, data, (uint32_t)n);
        if (happens(r, r->weather.duplicate)) {
            r->counts.duplicated++;
            queue_frame(r, l, data, (uint32_t)n);
        }
    }
}

static void let_out(struct lane *l)
{
    uint64_t now = now_us();

    while (l->first != NULL && l->first->due_us <= now) {
        struct frame *f = l->first;

        if (write(l->to, f->data, f->bytes) < 0 && errno == EAGAIN)
            return;
        /* an interface that is down loses it: the cable is pulled */
        l->first = f->next;
        if (l->first == NULL)
            l->last = NULL;
        l->n--;
        free(f);
    }
}

static bool answer(struct relay *r)
{
    struct question q;

    if (recv(r->control, &q, sizeof(q), 0) != sizeof(q))
        return false;
    if (!q.count)
        r->weather = q.weather;
    return send(r->control, &r->counts, sizeof(r->counts), MSG_NOSIGNAL) == sizeof(r->counts);
}

/* Until the first frame is due, at most a second: 0 is at once. */
static struct timespec patience(const struct relay *r)
{
    uint64_t now = now_us(), wait = 1000000;

    for (int i = 0; i < 2; i++)
        if (r->lanes[i].first != NULL) {
            uint64_t due = r->lanes[i].first->due_us;

            wait = due <= now ? 0 : due - now < wait ? due - now : wait;
        }
    return (struct timespec){.tv_sec = (time_t)(wait / 1000000),
                             .tv_nsec = (long)(wait % 1000000) * 1000};
}

static void relay_run(struct relay *r)
{
    for (;;) {
        struct pollfd p[3] = {{.fd = r->lanes[0].from, .events = POLLIN},
                              {.fd = r->lanes[1].from, .events = POLLIN},
                              {.fd = r->control, .events = POLLIN}};
        struct timespec wait = patience(r);

        if (ppoll(p, 3, &wait, NULL) < 0 && errno != EINTR)
            return;
        if (p[2].revents != 0 && !answer(r))
            return;
        for (int i = 0; i < 2; i++) {
            if (p[i].revents & POLLIN)
                take_in(r, &r->lanes[i]);
            let_out(&r->lanes[i]);
        }
    }
}

/* ---- laying it ---- */

/* A TAP interface in a namespace. The caller's thread is in that namespace afterwards. @return -1:
 * no */
static int tap_open(const char *ns, const char *name)
{
    struct ifreq req = {.ifr_flags = IFF_TAP | IFF_NO_PI};
    char path[128];
    int fd, ns_fd;

    snprintf(path, sizeof(path), "/run/netns/%s", ns);
    ns_fd = open(path, O_RDONLY | O_CLOEXEC);
    if (ns_fd < 0)
        return -1;
    fd = setns(ns_fd, CLONE_NEWNET);
    close(ns_fd);
    if (fd != 0)
        return -1;
    fd = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0)
        return -1;
    snprintf(req.ifr_name, sizeof(req.ifr_name), "%s", name);
    if (ioctl(fd, TUNSETIFF, &req) == 0)
        return fd;
    close(fd);
    return -1;
}

static _Noreturn void between(int control, pid_t parent, const char *ns_a, const char *if_a,
                              const char *ns_b, const char *if_b, uint64_t seed)
{
    struct relay r = {.control = control, .random = seed};
    int a, b;

    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent)
        _exit(0);
    signal(SIGPIPE, SIG_IGN);
    a = tap_open(ns_a, if_a);
    b = a < 0 ? -1 : tap_open(ns_b, if_b);
    if (b < 0)
        _exit(1);
    r.lanes[0].from = r.lanes[1].to = a;
    r.lanes[1].from = r.lanes[0].to = b;
    if (send(control, &r.counts, sizeof(r.counts), 0) == sizeof(r.counts))
        relay_run(&r);
    _exit(0);
}

const char *cable_lay(struct cable *c, const char *ns_a, const char *if_a, const char *ns_b,
                      const char *if_b, uint64_t seed)
{
    struct cable_counts laid;
    pid_t parent = getpid();
    int ends[2];

    *c = (struct cable){.control = -1};
    if (access("/dev/net/tun", R_OK | W_OK) != 0)
        return "/dev/net/tun is not to be had";
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) != 0)
        return "no socket pair";
    c->pid = fork();
    if (c->pid == 0) {
        close(ends[0]);
        between(ends[1], parent, ns_a, if_a, ns_b, if_b, seed);
    }
    close(ends[1]);
    c->control = ends[0];
    if (c->pid > 0 && recv(c->control, &laid, sizeof(laid), 0) == sizeof(laid))
        return NULL;
    cable_remove(c);
    return "a TAP interface cannot be made in the namespaces";
}

static struct cable_counts ask(struct cable *c, const struct question *q)
{
    struct cable_counts counts = {0};

    if (send(c->control, q, sizeof(*q), MSG_NOSIGNAL) != sizeof(*q) ||
        recv(c->control, &counts, sizeof(counts), 0) != sizeof(counts)) {
        fprintf(stderr, "cable: the process between has ended\n");
        abort();
    }
    return counts;
}

void cable_set(struct cable *c, const struct weather *w)
{
    struct question q;

    memset(&q, 0, sizeof(q));
    q.weather = *w;
    ask(c, &q);
}

struct cable_counts cable_count(struct cable *c)
{
    struct question q;

    memset(&q, 0, sizeof(q));
    q.count = true;
    return ask(c, &q);
}

void cable_remove(struct cable *c)
{
    if (c->control >= 0)
        close(c->control);
    if (c->pid > 0)
        waitpid(c->pid, NULL, 0);
    *c = (struct cable){.control = -1};
}

/* ---- words ---- */

static bool number_parse(const char **text, double *v, char unit[8])
{
    char *end;
    size_t n = 0;

    *v = strtod(*text, &end);
    if (end == *text || *v < 0)
        return false;
    while (n < 7 && end[n] != '\0' && end[n] != ' ')
        n++;
    memcpy(unit, end, n);
    unit[n] = '\0';
    for (*text = end + n; **text == ' ';)
        ++*text;
    return true;
}

static bool part_parse(const char **text, uint32_t *of_a_million)
{
    char unit[8];
    double v;

    if (!number_parse(text, &v, unit) || strcmp(unit, "%") != 0 || v > 100)
        return false;
    *of_a_million = (uint32_t)(v * 10000 + 0.5);
    return true;
}

static bool time_parse(const char **text, uint32_t *us)
{
    char unit[8];
    double v;

    if (!number_parse(text, &v, unit) || v > 1e6)
        return false;
    *us = (uint32_t)(strcmp(unit, "ms") == 0 ? v * 1000 : v);
    return strcmp(unit, "ms") == 0 || strcmp(unit, "us") == 0;
}

static bool rate_parse(const char **text, uint64_t *rate)
{
    char unit[8];
    double v;

    if (!number_parse(text, &v, unit))
        return false;
    if (strcmp(unit, "mbit") == 0)
        *rate = (uint64_t)(v * 1e6 / 8);
    else if (strcmp(unit, "bps") == 0) /* bytes, as tc has it */
        *rate = (uint64_t)v;
    else
        return false;
    return *rate > 0;
}

bool weather_parse(const char *text, struct weather *w)
{
    *w = (struct weather){0};
    while (*text != '\0') {
        size_t n = strcspn(text, " ");
        const char *word = text;
        bool good;

        for (text += n; *text == ' ';)
            text++;
#define IS(name) (n == sizeof(name) - 1 && memcmp(word, name, n) == 0)
        if (IS("loss"))
            good = part_parse(&text, &w->loss);
        else if (IS("duplicate"))
            good = part_parse(&text, &w->duplicate);
        else if (IS("reorder"))
            good = part_parse(&text, &w->reorder);
        else if (IS("flip"))
            good = part_parse(&text, &w->flip);
        else if (IS("rate"))
            good = rate_parse(&text, &w->rate);
        else if (IS("delay"))
            good = time_parse(&text, &w->delay_us) &&
                   ((*text < '0' || *text > '9') || time_parse(&text, &w->jitter_us));
        else
            good = false;
#undef IS
        if (!good)
            return false;
    }
    return true;
}
