/*
 * trace: W3C trace context, and spans of requests exported as OTLP/HTTP (JSON) when an endpoint is
 * given.
 *
 *   router thread ──trace_export()──▶ queue ──thread──POST /v1/traces──▶ collector
 *
 * Threads   trace_export from any; a thread of its own sends. What it cannot send is dropped and
 *           counted: tracing never delays requests.
 * Source    W3C Trace Context level 1; OpenTelemetry OTLP 1.x, JSON encoding.
 */
#ifndef BATON_ROUTER_TRACE_H
#define BATON_ROUTER_TRACE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/status.h"

enum { TRACE_PARENT_LEN = 55 }; /* of "00-<32>-<16>-<2>" */

struct trace_context {
    uint8_t trace_id[16], span_id[8], parent_id[8];
    bool has_parent, sampled;
};

/**
 * Begins a span: of the trace in a traceparent header, or of a new one.
 * @param header   NULL or malformed: a new trace
 * @param sampled  of a new trace
 */
void trace_begin(struct trace_context *t, const char *header, size_t len, bool sampled);

/** What to send on: "00-<trace>-<span>-<flags>". @param out  [TRACE_PARENT_LEN + 1] */
void trace_parent(const struct trace_context *t, char *out);

struct trace_exporter;

/**
 * @param endpoint  "http://host:port[/path]"; the path defaults to /v1/traces
 * @return ST_OK; ST_INVALID for another shape
 */
enum status_code trace_exporter_start(const char *endpoint, struct trace_exporter **out,
                                      struct status *st);
/** Sends what waits (for a second at most) and joins. NULL is fine. */
void trace_exporter_stop(struct trace_exporter *e);

struct trace_attribute {
    const char *key;
    const char *text; /* NULL: number */
    int64_t number;
};

/** Queues a span. e may be NULL, or t not sampled: nothing happens. error: NULL when it went well.
 */
void trace_export(struct trace_exporter *e, const struct trace_context *t, const char *name,
                  uint64_t start_unix_ns, uint64_t end_unix_ns, const char *error,
                  const struct trace_attribute *attributes, size_t n);

uint64_t trace_dropped(const struct trace_exporter *e);

#endif
