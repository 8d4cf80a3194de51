/*
 * bench_load: how fast a checkpoint becomes a model, beside reading the same files into memory.
 *
 * Cold cases ask the kernel to forget the files first; it keeps what another process has mapped.
 */
#ifndef BATON_DEPLOY_BATON_BENCH_LOAD_H
#define BATON_DEPLOY_BATON_BENCH_LOAD_H

#include "common/model/model.h"
#include "deploy/baton/bench_table.h"

/**
 * Adds rows: loading with repack, files cold and in the page cache, against read() of the files
 * into fresh memory (as `cat` to memory does); and prints how long opening without repack takes.
 * @param o  as the model is to be opened
 */
enum status_code bench_load(const struct model_options *o, struct bench_table *table,
                            struct status *st);

#endif
