/*
 * safetensors: the tensors of a checkpoint directory, mapped, checked, by name.
 *
 * A file: u64 little-endian header length n; n bytes of JSON {name: {dtype, shape, data_offsets}}
 * and an optional "__metadata__"; then the data, offsets counted from its first byte. See
 * tests/oracle/CHECKPOINT.md. Everything in a header is input: it is checked before it is believed.
 *
 * Owns      the mappings; tensors and their bytes live until safetensors_close().
 * Threads   read-only after safetensors_open().
 */
#ifndef BATON_COMMON_MODEL_SAFETENSORS_H
#define BATON_COMMON_MODEL_SAFETENSORS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/status.h"

enum st_dtype {
    DTYPE_BF16,
    DTYPE_F32,
    DTYPE_F8_E4M3,
    DTYPE_F8_E8M0,
    DTYPE_I8,
    DTYPE_I64,
    DTYPE_I32,
    DTYPE_F16,
    DTYPE_F64,
    DTYPE_U8,
    DTYPE_N
};

enum { TENSOR_DIMS_MAX = 4 };

struct tensor {
    const char *name; /* as the model calls it: other spellings are translated */
    const char *file; /* shard's file name */
    enum st_dtype dtype;
    int n_dims;
    int64_t shape[TENSOR_DIMS_MAX];
    const uint8_t *data; /* mapped; any alignment */
    uint64_t bytes;
};

struct safetensors;

/** "BF16", "F8_E4M3", ... */
const char *dtype_name(enum st_dtype t);

/**
 * Opens DIR/model.safetensors.index.json and the shards it names, or DIR/model.safetensors alone.
 * @return ST_OK; ST_INVALID (no such file, index and shards disagree) or ST_CORRUPT (truncated
 * shard, bad header), naming file, tensor, found and expected
 */
enum status_code safetensors_open(const char *dir, struct safetensors **out, struct status *st);

/** Opens one file. */
enum status_code safetensors_open_file(const char *path, struct safetensors **out,
                                       struct status *st);
void safetensors_close(struct safetensors *s);

/** All tensors, sorted by name. */
const struct tensor *safetensors_all(const struct safetensors *s, size_t *n);

/** NULL when there is none of that name. */
const struct tensor *safetensors_find(const struct safetensors *s, const char *name);

/* ---- writing ---- */

/* A tensor to be written; data is row-major, little-endian. */
struct tensor_out {
    const char *name;
    enum st_dtype dtype;
    int n_dims;
    int64_t shape[TENSOR_DIMS_MAX];
    const void *data; /* NULL: the bytes are filled in later by the caller, at `offset` */
    uint64_t offset;  /* out: in the file */
};

/**
 * Writes header and data; tensors lie in the given order.
 * @return ST_OK; ST_INVALID with the reason of the system
 */
enum status_code safetensors_write(const char *path, struct tensor_out *tensors, size_t n,
                                   struct status *st);

#endif
