#include "common/worker/orders.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "common/base/log.h"

enum { ORDER_FLUSH = 1000, ORDER_TRACE }; /* beside the message types of both loops */

static void give(struct worker *w, int order)
{
    struct msg *m = calloc(1, sizeof(*m));

    if (m == NULL)
        abort(); /* a few bytes: the process is beyond help */
    m->type = order;
    mailbox_push(w->engine, m);
}

void orders_flush_cache(struct worker *w)
{
    give(w, ORDER_FLUSH);
}

void orders_toggle_trace(struct worker *w)
{
    give(w, ORDER_TRACE);
}

/* The first trace goes where --step-trace says, the others beside it. */
static enum status_code open_trace(struct worker *w, struct status *st)
{
    char path[PATH_MAX], number[16] = "";

    if (w->n_traces++ > 0)
        snprintf(number, sizeof(number), ".%u", w->n_traces);
    if (w->opt.step_trace != NULL)
        snprintf(path, sizeof(path), "%s%s", w->opt.step_trace, number);
    else
        snprintf(path, sizeof(path), "baton-%s-%d.trace.json%s", w->role, (int)getpid(), number);
    if (step_trace_open(path, w->role, &w->trace, st) == ST_OK)
        log_info("step trace: to %s, until SIGUSR1", path);
    return st->code;
}

enum status_code orders_start(struct worker *w, struct status *st)
{
    return w->opt.step_trace != NULL ? open_trace(w, st) : status_ok(st);
}

static void toggle_trace(struct worker *w)
{
    struct status st;

    if (w->trace != NULL) {
        step_trace_close(w->trace);
        w->trace = NULL;
        log_info("step trace: complete");
    } else if (open_trace(w, &st) != ST_OK) {
        log_error("%s", st.msg);
    }
}

bool orders_obey(struct worker *w, struct engine *e, struct msg *m)
{
    if (m->type == ORDER_FLUSH)
        log_info("prefix cache: %u pages dropped", engine_flush_cache(e));
    else if (m->type == ORDER_TRACE)
        toggle_trace(w);
    else
        return false;
    free(m);
    return true;
}
