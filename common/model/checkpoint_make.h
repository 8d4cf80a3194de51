/*
 * checkpoint_make: random checkpoints in the released format: the same bytes as
 * tests/oracle/make_checkpoint.py writes for the same arguments, on every machine.
 *
 * Every tensor comes from a counter-based stream of its own: key = first 8 bytes of
 * SHA-256("<seed>/<name>"), word(i) = SplitMix64 output i of that key, normal(i) = (sum of the four
 * 16-bit lanes of word(i) - 131070) / 37837.2, in f32. Block gains differ by powers of two from
 * tile to tile, so that a loader that mixes up scales cannot pass.
 */
#ifndef BATON_COMMON_MODEL_CHECKPOINT_MAKE_H
#define BATON_COMMON_MODEL_CHECKPOINT_MAKE_H

#include <stdint.h>

#include "common/base/status.h"

enum checkpoint_experts {
    EXPERTS_FP4,          /* as the Instruct releases */
    EXPERTS_FP8,          /* as the Base releases: FP8 experts, scales stored as F32 */
    EXPERTS_FP8_CONVERTED /* the FP4 checkpoint with its experts cast to FP8 without loss */
};

struct checkpoint_options {
    /* "tiny", "slim", "flashlike", "prolike", "flashheads", "proheads"; "flash", "pro": a release's
     * geometry */
    const char *preset;
    enum checkpoint_experts experts;
    int vocab_size; /* 0: the preset's */
    int n_layers;   /* flash, pro: the first so many layers; 0: all */
    double scale;   /* flash, pro: share of experts and vocabulary, (0, 1]; 0: all */
    int64_t seed;   /* < 0: the preset's */
};

/**
 * Writes config.json, the shards and their index into dir (made if missing).
 * @return ST_OK; ST_INVALID for an unknown preset, more layers than it has, or when a file cannot
 * be written
 */
enum status_code checkpoint_make(const char *dir, const struct checkpoint_options *opt,
                                 struct status *st);

#endif
