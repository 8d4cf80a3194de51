#include "common/rpc/rpc_message.h"

#include <stdint.h>
#include <stdlib.h>

enum status_code rpc_message_pack(const ProtobufCMessage *m, void **out, size_t *len,
                                  struct status *st)
{
    size_t n = protobuf_c_message_get_packed_size(m);
    void *bytes;

    if (n > RPC_MESSAGE_MAX)
        return status_set(st, ST_INVALID, "a message of %zu bytes, at most %d travel", n,
                          RPC_MESSAGE_MAX);
    bytes = malloc(n + 1);
    if (bytes == NULL)
        return status_set(st, ST_EXHAUSTED, "no memory for a message of %zu bytes", n);
    *len = protobuf_c_message_pack(m, bytes);
    *out = bytes;
    return status_ok(st);
}

enum status_code rpc_session_send_message(struct rpc_session *s, const ProtobufCMessage *m,
                                          struct status *st)
{
    void *bytes = NULL;
    size_t len = 0;

    if (rpc_message_pack(m, &bytes, &len, st) != ST_OK)
        return st->code;
    return rpc_session_give(s, bytes, len, st);
}

/* ---- arena ---- */

enum { ARENA_ALIGN = 16, ARENA_BYTES_MIN = 16 << 10, ARENA_BYTES_MAX = 1 << 20 };

static void *arena_alloc(void *arg, size_t n)
{
    struct rpc_arena *a = arg;
    size_t at = a->used;

    n = (n + ARENA_ALIGN - 1) & ~(size_t)(ARENA_ALIGN - 1);
    if (n > a->cap - at) {
        a->beyond += n;
        return malloc(n);
    }
    a->used += n;
    return a->block + at;
}

static void arena_free(void *arg, void *p)
{
    struct rpc_arena *a = arg;

    if ((uintptr_t)p - (uintptr_t)a->block >= a->cap)
        free(p);
}

void rpc_arena_init(struct rpc_arena *a)
{
    *a = (struct rpc_arena){.allocator = {arena_alloc, arena_free, a}};
}

void rpc_arena_deinit(struct rpc_arena *a)
{
    free(a->block);
    *a = (struct rpc_arena){0};
}

/* Large enough for the next message like the last, within bounds. */
static void arena_grow(struct rpc_arena *a)
{
    size_t cap = (a->used + a->beyond) * 2;
    char *bigger;

    cap = cap < ARENA_BYTES_MIN ? ARENA_BYTES_MIN : cap < ARENA_BYTES_MAX ? cap : ARENA_BYTES_MAX;
    if (cap <= a->cap || (bigger = malloc(cap)) == NULL)
        return;
    free(a->block);
    a->block = bigger;
    a->cap = cap;
}

void rpc_arena_drop(struct rpc_arena *a, ProtobufCMessage *m)
{
    if (a->beyond > 0) {
        if (m != NULL)
            protobuf_c_message_free_unpacked(m, &a->allocator);
        arena_grow(a);
    }
    a->used = a->beyond = 0;
}
