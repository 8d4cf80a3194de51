/*
 * baton-decode: generates tokens from KV pages that prefill workers hand over.
 *
 * main: flags, parts, threads, event loop, tear-down. The work is in decode_loop.c.
 */
#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include "common/base/log.h"
#include "common/worker/worker.h"
#include "decode/messages.h"
#include "decode/decode_loop.h"
#include "decode/sessions.h"

enum { DEFAULT_PORT = 30001 };

struct engine {
    struct worker *w;
    struct decode_loop *loop;
};

static void *engine_main(void *arg)
{
    struct engine *e = arg;

    decode_loop_run(e->loop);
    worker_quit(e->w);
    return NULL;
}

static void stop(void *arg)
{
    decode_loop_drain(((struct engine *)arg)->loop);
}

static enum status_code run(struct worker *w, struct status *st)
{
    struct engine e = {.w = w};
    struct rpc_method method;
    pthread_t thread;

    if (worker_open(w, st) != ST_OK || decode_loop_new(w, &e.loop, st) != ST_OK)
        return st->code;
    method = decode_session_method(w->engine);
    if (pthread_create(&thread, NULL, engine_main, &e) != 0)
        return status_set(st, ST_EXHAUSTED, "cannot start the engine thread");
    if (worker_serve(w, &method, 1, stop, &e, st) != ST_OK)
        decode_loop_drain(e.loop);
    pthread_join(thread, NULL);
    worker_stop_serving(w);
    decode_loop_free(e.loop);
    return st->code;
}

int main(int argc, char **argv)
{
    struct worker w = {.role = "decode"};
    struct flag flags[WORKER_FLAGS];
    struct status st, result;

    worker_flags(&w.opt, flags, DEFAULT_PORT);
    if (flags_parse(flags, argc, argv, NULL, NULL, &st) == ST_CANCELLED) {
        flags_help(flags,
                   "baton-decode: generates tokens from KV pages that prefill workers hand over\n");
        return 0;
    }
    if (st.code != ST_OK) {
        fprintf(stderr, "baton-decode: %s\n", st.msg);
        return 2;
    }
    log_init("decode", (enum log_level)log_level_parse(w.opt.log_level));
    run(&w, &result);
    worker_close(&w);
    if (result.code != ST_OK) {
        log_error("%s", result.msg);
        return 1;
    }
    log_info("stopped");
    return 0;
}
