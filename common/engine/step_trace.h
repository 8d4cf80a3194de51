/*
 * step_trace: every step of an engine as a Chrome trace (chrome://tracing, Perfetto): its phases on
 * a time line, with the batch's size as arguments.
 *
 * Threads   engine only.
 * Source    Trace Event Format, JSON array, complete events ("ph": "X").
 */
#ifndef BATON_COMMON_ENGINE_STEP_TRACE_H
#define BATON_COMMON_ENGINE_STEP_TRACE_H

#include "common/base/status.h"
#include "common/engine/engine.h"

struct step_trace;

enum { STEP_TRACE_STEPS_MAX = 1000000 }; /* about 400 MB; what comes after is not written */

/** @return ST_OK; ST_INVALID when the file cannot be made */
enum status_code step_trace_open(const char *path, const char *role, struct step_trace **out,
                                 struct status *st);

/** The step that has just ended. NULL is fine. */
void step_trace_add(struct step_trace *t, const struct engine_stats *s);

/** Completes the file. NULL is fine. */
void step_trace_close(struct step_trace *t);

#endif
