#include "kernels/cuda/backend_internal.h"

#include <string.h>

#include "kernels/cuda/pieces.h"

enum {
    PARALLEL_BYTES = 1 << 20, /* from here on several threads copy */
    RING_BYTES = 1 << 20,     /* of small writes; one may have a quarter */
    WRITES_MAX = 1024,
    MOVE_PIECES = 8192, /* of a round of dev_move() */
    MOVE_SPREAD = 16    /* blocks of a piece */
};

/* ---- small writes ---- */

static void send_writes(struct backend *b)
{
    int first = b->memory.n_sent;

    b->memory.n_sent = b->memory.n_writes;
    cuda_pieces_copy(b->gpu->stream, b->memory.writes + first, b->memory.n_sent - first, 1);
}

/* The ring is empty again when the device has read it. */
static void empty_ring(struct backend *b)
{
    b->gpu->ops->enter(b->gpu);
    send_writes(b);
    b->gpu->ops->wait(b->gpu);
    b->memory.n_writes = b->memory.n_sent = 0;
    b->memory.ring_used = 0;
}

static bool overlaps(const struct kernel_piece *w, uint64_t dst, size_t bytes)
{
    return dst < w->dst.addr + w->bytes && w->dst.addr < dst + bytes;
}

static void small_write(struct backend *b, uint64_t dst, const void *src, size_t bytes)
{
    size_t room = (bytes + 15) / 16 * 16;

    if (b->memory.n_writes == WRITES_MAX || b->memory.ring_used + room > RING_BYTES)
        empty_ring(b);
    for (int i = b->memory.n_sent; i < b->memory.n_writes; i++)
        if (overlaps(&b->memory.writes[i], dst, bytes)) { /* later writes win */
            send_writes(b);
            break;
        }
    memcpy(b->memory.ring + b->memory.ring_used, src, bytes);
    b->memory.writes[b->memory.n_writes++] = (struct kernel_piece){
        {dst}, {(uint64_t)(uintptr_t)(b->memory.ring + b->memory.ring_used)}, bytes};
    b->memory.ring_used += room;
}

/* Every operation asks for this before it launches. */
struct cuda_ops *cuda_ops_of(struct kernels *k)
{
    struct backend *b = backend_of(k);

    b->gpu->ops->enter(b->gpu);
    if (b->memory.n_writes > b->memory.n_sent)
        send_writes(b);
    return &b->ops;
}

/* ---- pieces ---- */

struct copy {
    uint8_t *dst;
    const uint8_t *src;
    size_t bytes;
};

static void copy_part(void *arg, int part, int n_parts)
{
    const struct copy *c = arg;
    size_t first = c->bytes / (size_t)n_parts * (size_t)part;
    size_t end = part == n_parts - 1 ? c->bytes : c->bytes / (size_t)n_parts * (size_t)(part + 1);

    memcpy(c->dst + first, c->src + first, end - first);
}

/* Into the present piece, which is free. */
void backend_fill_piece(struct kernels *k, size_t at, const void *src, size_t bytes)
{
    struct copy c = {backend_of(k)->memory.piece[backend_of(k)->memory.turn] + at, src, bytes};

    if (bytes < PARALLEL_BYTES || k->env.parallel == NULL)
        memcpy(c.dst, src, bytes);
    else
        k->env.parallel(k->env.pool, copy_part, &c);
}

void backend_begin_piece(struct backend *b)
{
    b->gpu->ops->wait_mark(b->gpu, b->memory.turn);
}

void backend_end_piece(struct backend *b)
{
    b->gpu->ops->mark(b->gpu, b->memory.turn);
    b->memory.turn ^= 1;
}

void backend_large_write(struct kernels *k, uint64_t dst, const void *src, size_t bytes)
{
    struct backend *b = backend_of(k);

    for (size_t at = 0; at < bytes; at += PIECE_BYTES) {
        size_t n = bytes - at < PIECE_BYTES ? bytes - at : PIECE_BYTES;

        backend_begin_piece(b);
        backend_fill_piece(k, 0, (const uint8_t *)src + at, n);
        b->gpu->ops->to_device(b->gpu, dst + at, b->memory.piece[b->memory.turn], n);
        backend_end_piece(b);
    }
}

/* ---- memory and order ---- */

struct dev_ptr backend_alloc(struct kernels *k, size_t bytes)
{
    struct gpu *g = backend_of(k)->gpu;

    return (struct dev_ptr){g->ops->take(g, bytes)};
}

void backend_free(struct kernels *k, struct dev_ptr p)
{
    struct gpu *g = backend_of(k)->gpu;

    if (!dev_is_null(p))
        g->ops->give(g, p.addr);
}

static void dev_write(struct kernels *k, struct dev_ptr dst, const void *src, size_t bytes)
{
    struct backend *b = backend_of(k);

    if (bytes == 0)
        return;
    if (bytes <= RING_BYTES / 4) {
        small_write(b, dst.addr, src, bytes);
        return;
    }
    cuda_ops_of(k); /* in order */
    backend_large_write(k, dst.addr, src, bytes);
}

int backend_sync(struct kernels *k)
{
    struct backend *b = backend_of(k);

    empty_ring(b);
    return b->gpu->error[0] == '\0' ? 0 : backend_fail(k, b->gpu->error);
}

static int dev_read(struct kernels *k, void *dst, struct dev_ptr src, size_t bytes)
{
    struct backend *b = backend_of(k);

    for (size_t at = 0; at < bytes; at += PIECE_BYTES) {
        size_t n = bytes - at < PIECE_BYTES ? bytes - at : PIECE_BYTES;

        cuda_ops_of(k);
        backend_begin_piece(b);
        b->gpu->ops->to_host(b->gpu, b->memory.piece[b->memory.turn], src.addr + at, n);
        if (backend_sync(k) != 0)
            return -1;
        memcpy((uint8_t *)dst + at, b->memory.piece[b->memory.turn], n);
    }
    return backend_sync(k);
}

static void dev_copy(struct kernels *k, struct dev_ptr dst, struct dev_ptr src, size_t bytes)
{
    struct backend *b = backend_of(k);

    cuda_ops_of(k);
    b->gpu->ops->within(b->gpu, dst.addr, src.addr, bytes);
}

/* With what is queued done. */
static void *dev_host(struct kernels *k, struct dev_ptr p)
{
    if (!backend_of(k)->gpu->host_reaches)
        return NULL;
    empty_ring(backend_of(k));
    return (void *)(uintptr_t)p.addr;
}

/* ---- pieces on their way ---- */

static int dev_share(struct kernels *k, void *host, size_t bytes)
{
    struct gpu *g = backend_of(k)->gpu;

    return g->ops->share(g, host, bytes) == 0 ? 0 : backend_fail(k, g->error);
}

static void dev_unshare(struct kernels *k, void *host)
{
    struct gpu *g = backend_of(k)->gpu;

    g->ops->unshare(g, host);
}

/* The groups of one round fit their pinned lists. */
struct round {
    struct kernel_piece *pieces, *ends; /* as given, and for the checksum */
    int32_t *group_first;
    uint32_t *crc;
};

static struct round round_of(struct backend *b)
{
    uint8_t *at = b->memory.moves;
    struct round r;

    r.pieces = (struct kernel_piece *)(void *)at;
    r.ends = r.pieces + MOVE_PIECES;
    r.group_first = (int32_t *)(void *)(r.ends + MOVE_PIECES);
    r.crc = (uint32_t *)(void *)(r.group_first + MOVE_PIECES + 1);
    return r;
}

/* Groups [g, n_groups) as far as they fit. @return the first that does not */
static size_t move_round(struct backend *b, const struct kernel_piece *pieces,
                         const uint32_t *group_end, size_t g, size_t n_groups, bool crc_of_dst,
                         uint32_t *crc)
{
    struct round r = round_of(b);
    struct pieces_crc_args a = {r.crc, r.ends, r.group_first};
    uint32_t first = g > 0 ? group_end[g - 1] : 0, n = 0;
    size_t from = g;

    for (; g < n_groups && g - from < MOVE_PIECES && group_end[g] - first <= MOVE_PIECES; g++) {
        r.group_first[g - from] = (int32_t)n;
        n = group_end[g] - first;
    }
    r.group_first[g - from] = (int32_t)n;
    for (uint32_t i = 0; i < n; i++) {
        r.pieces[i] = r.ends[i] = pieces[first + i];
        if (crc_of_dst)
            r.ends[i].src = r.ends[i].dst;
    }
    cuda_pieces_copy(b->gpu->stream, r.pieces, (int)n, MOVE_SPREAD);
    cuda_pieces_crc(b->gpu->stream, a, (int)(g - from));
    b->gpu->ops->wait(b->gpu);
    memcpy(crc + from, r.crc, (g - from) * sizeof(*crc));
    return g;
}

static int dev_move(struct kernels *k, const struct kernel_piece *pieces, size_t n,
                    const uint32_t *group_end, size_t n_groups, bool crc_of_dst, uint32_t *crc)
{
    struct backend *b = backend_of(k);
    size_t g = 0;

    (void)n;
    cuda_ops_of(k); /* after what is queued */
    while (g < n_groups) {
        size_t end = move_round(b, pieces, group_end, g, n_groups, crc_of_dst, crc);

        if (end == g)
            return backend_fail(k, "a page of more pieces than there is room for");
        g = end;
    }
    return backend_sync(k);
}

/* ---- the part ---- */

const char *backend_memory_open(struct backend *b)
{
    struct backend_memory *m = &b->memory;
    struct gpu *g = b->gpu;

    for (int i = 0; i < 2; i++) {
        m->piece[i] = g->ops->take_pinned(g, PIECE_BYTES);
        m->raw[i] = g->ops->take(g, PIECE_BYTES);
        if (m->piece[i] == NULL || m->raw[i] == 0)
            return "staging";
    }
    m->ring = g->ops->take_pinned(g, RING_BYTES);
    m->writes = g->ops->take_pinned(g, WRITES_MAX * sizeof(*m->writes));
    m->moves = g->ops->take_pinned(
        g, MOVE_PIECES * (2 * sizeof(struct kernel_piece) + 2 * sizeof(uint32_t)) + 64);
    return m->ring == NULL || m->writes == NULL || m->moves == NULL ? "small writes" : NULL;
}

void backend_memory_close(struct backend *b)
{
    struct backend_memory *m = &b->memory;
    struct gpu *g = b->gpu;

    for (int i = 0; i < 2; i++)
        g->ops->give_pinned(g, m->piece[i]);
    g->ops->give_pinned(g, m->ring);
    g->ops->give_pinned(g, m->writes);
    g->ops->give_pinned(g, m->moves);
}

void backend_memory_fill(struct kernel_ops *ops)
{
    ops->dev_alloc = backend_alloc;
    ops->dev_free = backend_free;
    ops->dev_write = dev_write;
    ops->dev_read = dev_read;
    ops->dev_copy = dev_copy;
    ops->sync = backend_sync;
    ops->dev_host = dev_host;
    ops->dev_share = dev_share;
    ops->dev_unshare = dev_unshare;
    ops->dev_move = dev_move;
}
