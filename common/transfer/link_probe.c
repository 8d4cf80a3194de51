#include "common/transfer/link_probe.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/clock.h"
#include "common/base/crc32c.h"
#include "common/base/log.h"

enum {
    N_SMALL = 9,
    N_LARGE = 3,
    SMALL_BYTES = 64,
    LEAST_PERCENT = 40, /* of what is expected; less is far below */
};

/* What one stream of the socket lane gives at most on the servers we know: a faster network is not
 * slow because of that. */
static const uint64_t TCP_STREAM_RATE = 2500000000u;

static const uint64_t PROBE_ID = UINT64_MAX;

struct link_probe {
    struct transfer_peer *peer;
    int step;
    uint64_t posted_ns, small_ns, large_ns; /* the shortest so far; 0: none */
};

bool link_is_slow(uint64_t rate, uint64_t expected)
{
    return rate < expected / 100 * LEAST_PERCENT;
}

/* "rdma (rc_mlx5/mlx5_0:1)": the port after the slash. */
static uint64_t rdma_rate(const struct rdma_report *r, const char *device)
{
    for (uint32_t i = 0; i < r->n_ports; i++) {
        char name[IBV_SYSFS_NAME_MAX + 8];

        snprintf(name, sizeof(name), "%s:%u", r->ports[i].device, r->ports[i].port);
        if (strcmp(name, device) == 0)
            return (uint64_t)(r->ports[i].gbit_per_s * 1e9 / 8);
    }
    return 0;
}

/* What the driver says of a network interface; loopback and virtual ones say nothing. */
static uint64_t interface_rate(const char *device)
{
    char path[128];
    int mbit = 0;
    FILE *f;

    snprintf(path, sizeof(path), "/sys/class/net/%.64s/speed", device);
    f = fopen(path, "re");
    if (f == NULL)
        return 0;
    if (fscanf(f, "%d", &mbit) != 1 || mbit < 0)
        mbit = 0;
    fclose(f);
    return (uint64_t)mbit * 1000000 / 8;
}

/* What a copy with its checksum gives within this process. */
static uint64_t copy_rate(void)
{
    uint8_t *from = calloc(2, LINK_PROBE_BYTES), *to = from + LINK_PROBE_BYTES;
    uint64_t best = 0;

    if (from == NULL)
        return 0;
    memset(from, 1, 2 * (size_t)LINK_PROBE_BYTES);
    for (int i = 0; i < N_LARGE; i++) {
        uint64_t start = clock_now_ns(), ns;

        (void)crc32c_copy(0, to, from, LINK_PROBE_BYTES);
        crc32c_copy_end();
        ns = clock_now_ns() - start + 1;
        if (best == 0 || ns < best)
            best = ns;
    }
    free(from);
    return LINK_PROBE_BYTES * 1000000000ull / best;
}

uint64_t link_rate_expected(const struct rdma_report *report, const char *via)
{
    const char *slash = strchr(via, '/');
    char device[64] = "";
    uint64_t rate;

    if (slash != NULL)
        snprintf(device, sizeof(device), "%.*s", (int)strcspn(slash + 1, ")"), slash + 1);
    if (strncmp(via, "rdma", 4) == 0)
        return rdma_rate(report, device);
    if (strncmp(via, "shm", 3) == 0)
        return copy_rate();
    rate = strncmp(via, "tcp", 3) == 0 ? interface_rate(device) : 0;
    return rate < TCP_STREAM_RATE ? rate : TCP_STREAM_RATE;
}

static void judge(const struct link_probe *b)
{
    struct transfer_peer *p = b->peer;
    struct transfer_link l = {.bytes_per_s = LINK_PROBE_BYTES * 1000000000ull / b->large_ns,
                              .latency_us = (double)b->small_ns * 1e-3};
    char via[sizeof(p->transport)];

    transfer_peer_transport(p, via, sizeof(via));
    l.expected_bytes_per_s = link_rate_expected(&p->t->plan.report, via);
    l.slow = link_is_slow(l.bytes_per_s, l.expected_bytes_per_s);
    if (l.slow)
        log_warn("transfer: peer %s: only %.2f GB/s over %s, which ought to give %.2f: is the link "
                 "shared, down to a lower rate, or a slower slot or path than you think?",
                 p->name, (double)l.bytes_per_s * 1e-9, via, (double)l.expected_bytes_per_s * 1e-9);
    else
        log_info("transfer: peer %s: %.2f GB/s and %.0f us over %s", p->name,
                 (double)l.bytes_per_s * 1e-9, l.latency_us, via);
    pthread_mutex_lock(&p->lock);
    p->link = l;
    p->link_known = true;
    pthread_mutex_unlock(&p->lock);
}

static void on_done(void *arg, const struct transfer_result *r);

static void post(struct link_probe *b)
{
    bool small = b->step < N_SMALL;
    struct transfer_piece piece = {.slab = SLAB_PROBE,
                                   .bytes = small ? SMALL_BYTES : LINK_PROBE_BYTES};
    struct status st;

    b->posted_ns = clock_now_ns();
    if (put_start(b->peer, PROBE_ID, SLAB_PROBE + 1, &piece, 1, 1, on_done, b, &st) != ST_OK) {
        log_warn("transfer: peer %s: the link is not probed: %s", b->peer->name, st.msg);
        free(b);
    }
}

static void on_done(void *arg, const struct transfer_result *r)
{
    struct link_probe *b = arg;
    uint64_t ns = clock_now_ns() - b->posted_ns + 1;
    uint64_t *best = b->step < N_SMALL ? &b->small_ns : &b->large_ns;

    if (r->status.code != ST_OK || b->peer->state != PEER_OPEN) {
        free(b); /* the peer's own end has been told */
        return;
    }
    if (*best == 0 || ns < *best)
        *best = ns;
    if (++b->step < N_SMALL + N_LARGE) {
        post(b);
        return;
    }
    judge(b);
    free(b);
}

void link_probe_start(struct transfer_peer *p)
{
    struct link_probe *b;

    /* A peer of another kind of build may not have the slab. */
    if (p->t->rate_limit != 0 || p->slabs[SLAB_PROBE].bytes < LINK_PROBE_BYTES)
        return;
    b = calloc(1, sizeof(*b));
    if (b == NULL)
        return;
    b->peer = p;
    post(b);
}
