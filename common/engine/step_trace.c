#include "common/engine/step_trace.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/base/clock.h"
#include "common/base/log.h"

struct step_trace {
    FILE *file;
    uint64_t start_us, n_steps;
};

enum status_code step_trace_open(const char *path, const char *role, struct step_trace **out,
                                 struct status *st)
{
    struct step_trace *t = calloc(1, sizeof(*t));

    if (t == NULL)
        return status_set(st, ST_EXHAUSTED, "no memory for a trace");
    t->file = fopen(path, "we");
    if (t->file == NULL) {
        free(t);
        return status_set(st, ST_INVALID, "step trace %s: %s", path, strerror(errno));
    }
    t->start_us = clock_now_us();
    fprintf(t->file,
            "[\n{\"name\": \"process_name\", \"ph\": \"M\", \"pid\": %d, \"args\": {\"name\": "
            "\"baton-%s\"}}",
            (int)getpid(), role);
    *out = t;
    return status_ok(st);
}

static void phase(struct step_trace *t, const char *name, uint64_t at, uint64_t us)
{
    fprintf(t->file,
            ",\n{\"name\": \"%s\", \"ph\": \"X\", \"pid\": %d, \"tid\": 1, \"ts\": %" PRIu64
            ", \"dur\": %" PRIu64 "}",
            name, (int)getpid(), at, us);
}

void step_trace_add(struct step_trace *t, const struct engine_stats *s)
{
    uint64_t us = s->schedule_us + s->forward_us + s->sample_us + s->draft_us, at;

    if (t == NULL || ++t->n_steps > STEP_TRACE_STEPS_MAX)
        return;
    if (t->n_steps == STEP_TRACE_STEPS_MAX)
        log_warn("the step trace is full: later steps are not in it");
    at = clock_now_us() - t->start_us;
    at = at > us ? at - us : 0;
    fprintf(t->file,
            ",\n{\"name\": \"step\", \"ph\": \"X\", \"pid\": %d, \"tid\": 0, \"ts\": %" PRIu64
            ", \"dur\": %" PRIu64 ", \"args\": {\"requests\": %u, \"tokens\": %u, \"running\": %u, "
            "\"waiting\": %u, \"pages_free\": %u}}",
            (int)getpid(), at, us, s->batch_seqs, s->batch_tokens, s->n_running, s->n_waiting,
            s->pages_free);
    phase(t, "schedule", at, s->schedule_us);
    phase(t, "forward", at + s->schedule_us, s->forward_us);
    phase(t, "sample", at + s->schedule_us + s->forward_us, s->sample_us);
    if (s->draft_us > 0)
        phase(t, "draft", at + us - s->draft_us, s->draft_us);
}

void step_trace_close(struct step_trace *t)
{
    if (t == NULL)
        return;
    fputs("\n]\n", t->file);
    fclose(t->file);
    free(t);
}
