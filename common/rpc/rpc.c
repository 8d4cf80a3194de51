#include "common/rpc/rpc.h"

#include <assert.h>
#include <stdlib.h>

#include "common/rpc/rpc_internal.h"

/* How often connect timeouts are looked at; C core offers no timer of its own. */
enum { TICK_MS = 250 };

static void put_args(struct rpc_channel_args *out, size_t n, const struct rpc_int_arg *args)
{
    assert(out->list.num_args + n <= RPC_ARGS_MAX);
    for (size_t i = 0; i < n; i++)
        out->args[out->list.num_args++] =
            (grpc_arg){GRPC_ARG_INTEGER, (char *)args[i].key, {.integer = args[i].value}};
}

const grpc_channel_args *rpc_channel_args(struct rpc_channel_args *out, size_t n,
                                          const struct rpc_int_arg *own)
{
    static const struct rpc_int_arg common[] = {
        {GRPC_ARG_KEEPALIVE_TIME_MS, 2000},
        {GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 1000},
        {GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1},
        {GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0},
        /* No ping beside the data to find out the path's bandwidth, a system call and a wake-up
         * each time: a window that is large enough for any path. */
        {GRPC_ARG_HTTP2_BDP_PROBE, 0},
        {GRPC_ARG_HTTP2_STREAM_LOOKAHEAD_BYTES, RPC_WINDOW_BYTES},
        {GRPC_ARG_MAX_RECEIVE_MESSAGE_LENGTH, RPC_MESSAGE_MAX},
        {GRPC_ARG_MAX_SEND_MESSAGE_LENGTH, RPC_MESSAGE_MAX},
    };

    out->list = (grpc_channel_args){0, out->args};
    put_args(out, sizeof(common) / sizeof(common[0]), common);
    put_args(out, n, own);
    return &out->list;
}

static void *run(void *arg)
{
    struct rpc *r = arg;

    for (;;) {
        gpr_timespec tick = gpr_time_from_millis(TICK_MS, GPR_TIMESPAN);
        grpc_event e = grpc_completion_queue_next(
            r->cq, gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC), tick), NULL);

        if (e.type == GRPC_QUEUE_SHUTDOWN)
            return NULL;
        rpc_check_connecting(r);
        if (e.type == GRPC_OP_COMPLETE) {
            struct rpc_tag *tag = e.tag;

            RPC_TAG_TAKE(tag);
            tag->fn(tag, e.success);
        }
    }
}

enum status_code rpc_start(struct rpc **out, struct status *st)
{
    struct rpc *r = calloc(1, sizeof(*r));

    if (r == NULL)
        return status_set(st, ST_EXHAUSTED, "no memory for rpc");
    pthread_mutex_init(&r->lock, NULL);
    grpc_init();
    r->cq = grpc_completion_queue_create_for_next(NULL);
    if (pthread_create(&r->thread, NULL, run, r) != 0) {
        grpc_completion_queue_shutdown(r->cq);
        run(r);
        grpc_completion_queue_destroy(r->cq);
        grpc_shutdown_blocking();
        free(r);
        return status_set(st, ST_EXHAUSTED, "cannot start the rpc thread (ulimit -u)");
    }
    *out = r;
    return status_ok(st);
}

void rpc_stop(struct rpc *r)
{
    if (r == NULL)
        return;
    grpc_completion_queue_shutdown(r->cq);
    pthread_join(r->thread, NULL);
    grpc_completion_queue_destroy(r->cq);
    grpc_shutdown_blocking();
    pthread_mutex_destroy(&r->lock);
    rpc_tls_deinit(r);
    free(r);
}
