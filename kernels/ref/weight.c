/* Weights as ref holds them: codes as they lie in the checkpoint, scales as f32; a row is decoded
 * when it is needed. */
#include <stdio.h>

#include "kernels/ref/ref.h"

static size_t element_bytes(enum weight_type type)
{
    return type == WEIGHT_BF16 ? 2 : type == WEIGHT_F32 ? 4 : type == WEIGHT_I64 ? 8 : 1;
}

static size_t n_scales(const struct weight_src *src)
{
    if (src->type == WEIGHT_FP8)
        return (size_t)((src->rows + 127) / 128 * ((src->cols + 127) / 128));
    return src->type == WEIGHT_FP4 ? (size_t)(src->rows * (src->cols / 32)) : 0;
}

/* Scales as f32, whatever the checkpoint has. */
static void decode_scales(float *out, const struct weight_src *src)
{
    size_t n = n_scales(src);

    if (src->scale_is_f32)
        memcpy(out, src->scale, n * sizeof(float));
    else
        for (size_t i = 0; i < n; i++)
            out[i] = e8m0_decode(((const uint8_t *)src->scale)[i]);
}

/* Says why a matrix cannot be used; NULL: it can. F32 and I64 are read in place, at any width. */
static const char *refusal(const struct weight_src *src)
{
    bool narrow = src->type == WEIGHT_FP8 || src->type == WEIGHT_FP4 || src->type == WEIGHT_BF16;

    if (src->type == WEIGHT_FP4 && src->cols % 32 != 0)
        return "FP4 needs a multiple of 32, the block of its scales";
    return narrow && src->cols > REF_COLS_MAX ? "the reference kernels take up to 32768" : NULL;
}

/* weight.layout: data is ours, not the mapped file's. */
enum { OWNS_DATA = 1 };

int ref_weight_load(struct kernels *k, const struct weight_src *src, struct weight *out)
{
    size_t size = element_bytes(src->type);
    size_t bytes = (size_t)(src->rows * src->cols) * size / (src->type == WEIGHT_FP4 ? 2 : 1);
    const char *why = refusal(src);

    if (why != NULL) {
        snprintf(k->error, sizeof(k->error), "a matrix of %lld x %lld columns: %s",
                 (long long)src->rows, (long long)src->cols, why);
        return -1;
    }
    *out = (struct weight){.type = src->type, .rows = src->rows, .cols = src->cols};
    out->data.addr = (uint64_t)(uintptr_t)src->data;
    if ((uintptr_t)src->data % size != 0) { /* nothing promises that tensors are aligned */
        out->data = ref_dev_alloc(k, bytes);
        out->layout = OWNS_DATA;
        out->bytes = bytes;
        if (!dev_is_null(out->data))
            memcpy(ref_ptr(out->data), src->data, bytes);
    }
    if (n_scales(src) > 0) {
        out->scale = ref_dev_alloc(k, n_scales(src) * sizeof(float));
        out->bytes += n_scales(src) * sizeof(float);
        if (!dev_is_null(out->scale))
            decode_scales(ref_ptr(out->scale), src);
    }
    if (dev_is_null(out->data) || (n_scales(src) > 0 && dev_is_null(out->scale))) {
        ref_weight_unload(k, out);
        snprintf(k->error, sizeof(k->error), "no memory for a weight of %zu bytes", bytes);
        return -1;
    }
    return 0;
}

void ref_weight_unload(struct kernels *k, struct weight *w)
{
    if (w->layout & OWNS_DATA)
        ref_dev_free(k, w->data);
    ref_dev_free(k, w->scale);
    *w = (struct weight){0};
}

/* ---- rows ---- */

static void fp8_block(float *out, const uint8_t *codes, float scale, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        out[i] = e4m3_decode(codes[i]) * scale;
}

static void fp4_block(float *out, const uint8_t *pairs, float scale)
{
    for (int i = 0; i < 16; i++) {
        out[2 * i] = e2m1_decode(pairs[i] & 15u) * scale;
        out[2 * i + 1] = e2m1_decode((unsigned)pairs[i] >> 4) * scale;
    }
}

static void fp8_row(const struct weight *w, int64_t r, float *out)
{
    const uint8_t *codes = (const uint8_t *)ref_ptr(w->data) + r * w->cols;
    const float *scale = (const float *)ref_ptr(w->scale) + r / 128 * ((w->cols + 127) / 128);

    for (int64_t b = 0; b < w->cols; b += 128) /* the last tile may not be full */
        fp8_block(out + b, codes + b, scale[b / 128], b + 128 < w->cols ? 128 : w->cols - b);
}

static void fp4_row(const struct weight *w, int64_t r, float *out)
{
    const uint8_t *pairs = (const uint8_t *)ref_ptr(w->data) + r * (w->cols / 2);
    const float *scale = (const float *)ref_ptr(w->scale) + r * (w->cols / 32);

    for (int64_t b = 0; b < w->cols; b += 32)
        fp4_block(out + b, pairs + b / 2, scale[b / 32]);
}

REF_CLONES void ref_weight_row(const struct weight *w, int64_t r, float *out)
{
    const uint16_t *b;

    switch (w->type) {
    case WEIGHT_FP8:
        fp8_row(w, r, out);
        break;
    case WEIGHT_FP4:
        fp4_row(w, r, out);
        break;
    case WEIGHT_BF16:
        b = (const uint16_t *)ref_ptr(w->data) + r * w->cols;
        for (int64_t i = 0; i < w->cols; i++)
            out[i] = bf16_decode(b[i]);
        break;
    case WEIGHT_F32:
        memcpy(out, (const float *)ref_ptr(w->data) + r * w->cols, (size_t)w->cols * sizeof(float));
        break;
    case WEIGHT_I64:
        for (int64_t i = 0; i < w->cols; i++)
            out[i] = (float)((const int64_t *)ref_ptr(w->data))[r * w->cols + i];
        break;
    }
}
