#include "common/worker/worker_main.h"

#include <pthread.h>
#include <stdio.h>

#include "common/base/log.h"

struct engine {
    struct worker *w;
    const struct worker_role *role;
    void *loop;
};

static void *engine_main(void *arg)
{
    struct engine *e = arg;

    e->role->loop_run(e->loop);
    worker_quit(e->w);
    return NULL;
}

static void drain(void *arg)
{
    struct engine *e = arg;

    e->role->loop_drain(e->loop);
}

static enum status_code run(struct worker *w, const struct worker_role *role, struct status *st)
{
    struct engine e = {.w = w, .role = role};
    struct rpc_method method;
    pthread_t thread;

    if (worker_open(w, st) != ST_OK || role->loop_new(w, &e.loop, st) != ST_OK)
        return st->code;
    if (pthread_create(&thread, NULL, engine_main, &e) != 0) {
        role->loop_free(e.loop);
        return status_set(st, ST_EXHAUSTED, "cannot start the engine thread (ulimit -u)");
    }
    method = role->method(w->engine);
    if (worker_serve(w, &method, 1, drain, &e, st) != ST_OK)
        drain(&e);
    pthread_join(thread, NULL);
    worker_stop_serving(w);
    role->loop_free(e.loop);
    return st->code;
}

int worker_main(const struct worker_role *role, int argc, char **argv)
{
    struct worker w = {.role = role->name};
    struct flag flags[WORKER_FLAGS];
    struct status st, result;

    worker_flags(&w.opt, flags, role->default_port);
    if (flags_parse(flags, argc, argv, NULL, NULL, &st) == ST_CANCELLED) {
        flags_help(flags, role->heading);
        return 0;
    }
    if (st.code != ST_OK) {
        fprintf(stderr, "baton-%s: %s\n", role->name, st.msg);
        return 2;
    }
    log_init(role->name, (enum log_level)log_level_parse(w.opt.log_level));
    run(&w, role, &result);
    worker_close(&w);
    if (result.code != ST_OK) {
        log_error("%s", result.msg);
        return 1;
    }
    log_info("stopped");
    return 0;
}
