/*
 * baton-prefill: computes prompts and hands their KV pages to decode workers.
 *
 * The process's life (flags, parts, threads, signals) is common/worker/worker_main.c; the work is
 * prefill_loop.c.
 */
#include "common/worker/worker_main.h"
#include "prefill/prefill_loop.h"
#include "prefill/session.h"

static enum status_code loop_new(struct worker *w, void **loop, struct status *st)
{
    return prefill_loop_new(w, (struct prefill_loop **)loop, st);
}

static void loop_run(void *loop)
{
    prefill_loop_run(loop);
}

static void loop_drain(void *loop)
{
    prefill_loop_drain(loop);
}

static void loop_free(void *loop)
{
    prefill_loop_free(loop);
}

int main(int argc, char **argv)
{
    static const struct worker_role role = {
        .name = "prefill",
        .heading = "baton-prefill: computes prompts and hands their KV pages to decode workers\n",
        .default_port = 30000,
        .loop_new = loop_new,
        .loop_run = loop_run,
        .loop_drain = loop_drain,
        .loop_free = loop_free,
        .method = prefill_session_method,
    };

    return worker_main(&role, argc, argv);
}
