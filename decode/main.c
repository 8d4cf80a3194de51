/*
 * baton-decode: generates tokens from KV pages that prefill workers hand over.
 *
 * The process's life (flags, parts, threads, signals) is common/worker/worker_main.c; the work is
 * decode_loop.c.
 */
#include "common/worker/worker_main.h"
#include "decode/decode_loop.h"
#include "decode/sessions.h"

static enum status_code loop_new(struct worker *w, void **loop, struct status *st)
{
    return decode_loop_new(w, (struct decode_loop **)loop, st);
}

static void loop_run(void *loop)
{
    decode_loop_run(loop);
}

static void loop_drain(void *loop)
{
    decode_loop_drain(loop);
}

static void loop_free(void *loop)
{
    decode_loop_free(loop);
}

int main(int argc, char **argv)
{
    static const struct worker_role role = {
        .name = "decode",
        .heading = "baton-decode: generates tokens from KV pages that prefill workers hand over\n",
        .default_port = 30001,
        .loop_new = loop_new,
        .loop_run = loop_run,
        .loop_drain = loop_drain,
        .loop_free = loop_free,
        .method = decode_session_method,
    };

    return worker_main(&role, argc, argv);
}
