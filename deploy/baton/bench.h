/*
 * bench: what the parts of `baton bench-text` share.
 *
 * Each part measures its own and reports figures by name; the command prints them as lines to read
 * or, with --json, as one object a line: name, value, unit, and where a peer ran in the same run,
 * peer, peer_value, ratio.
 */
#ifndef BATON_DEPLOY_BATON_BENCH_H
#define BATON_DEPLOY_BATON_BENCH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/buf.h"
#include "common/base/status.h"
#include "common/text/tokenizer.h"

struct bench_corpus {
    const char *path; /* as given */
    const char *name; /* its last component */
    struct buf text;
};

struct bench {
    const char *tokenizer_path;
    struct tokenizer *tokenizer;
    struct bench_corpus *corpora;
    size_t n_corpora;
    const char *python; /* NULL: no peer is asked for */
    bool json;
};

/** One figure of ours. */
void bench_report(const struct bench *b, const char *name, double value, const char *unit);

/** One figure next to a peer's; ratio is how many times better ours is. */
void bench_report_peer(const struct bench *b, const char *name, double value, const char *unit,
                       const char *peer, double peer_value, double ratio);

/**
 * Seconds that the quickest of `runs` calls took.
 * @param run      what is measured
 * @param prepare  called before each run and not measured; may be NULL
 */
double bench_best(int runs, void (*run)(void *), void (*prepare)(void *), void *ctx);

/* The parts, in the order they run. Each prints its own errors into st and stops the command. */
enum status_code bench_tokenizer(const struct bench *b, struct status *st);
enum status_code bench_chat(const struct bench *b, struct status *st);

#endif
