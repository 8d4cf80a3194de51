/* Device memory of host backends, and weights as ref holds them: codes as they lie in the
 * checkpoint. */
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "kernels/ref/ref.h"

/* In front of each allocation: its mapped length, in a page of its own. */
enum { HEAD = 4096 };

struct dev_ptr ref_dev_alloc(struct kernels *k, size_t bytes)
{
    size_t total = (bytes + 2 * HEAD - 1) / HEAD * HEAD;
    char *p = mmap(NULL, total, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    (void)k;
    if (p == MAP_FAILED)
        return (struct dev_ptr){0};
    madvise(p, total, MADV_HUGEPAGE);
    memcpy(p, &total, sizeof(total));
    return (struct dev_ptr){(uint64_t)(uintptr_t)(p + HEAD)};
}

void ref_dev_free(struct kernels *k, struct dev_ptr p)
{
    size_t total;
    char *base;

    (void)k;
    if (dev_is_null(p))
        return;
    base = (char *)ref_ptr(p) - HEAD;
    memcpy(&total, base, sizeof(total));
    munmap(base, total);
}

void ref_dev_write(struct kernels *k, struct dev_ptr dst, const void *src, size_t bytes)
{
    (void)k;
    memcpy(ref_ptr(dst), src, bytes);
}

int ref_dev_read(struct kernels *k, void *dst, struct dev_ptr src, size_t bytes)
{
    (void)k;
    memcpy(dst, ref_ptr(src), bytes);
    return 0;
}

void ref_dev_copy(struct kernels *k, struct dev_ptr dst, struct dev_ptr src, size_t bytes)
{
    (void)k;
    memcpy(ref_ptr(dst), ref_ptr(src), bytes);
}

int ref_sync(struct kernels *k)
{
    (void)k;
    return 0;
}

void *ref_dev_host(struct kernels *k, struct dev_ptr p)
{
    (void)k;
    return ref_ptr(p);
}

/* ---- weights ---- */

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

/* layout bit 0: data is ours, not the mapped file's. */
enum { OWNS_DATA = 1 };

int ref_weight_load(struct kernels *k, const struct weight_src *src, struct weight *out)
{
    size_t size = element_bytes(src->type);
    size_t bytes = (size_t)(src->rows * src->cols) * size / (src->type == WEIGHT_FP4 ? 2 : 1);

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

/* Decoded values of all FP8 codes, and of all pairs of FP4. */
static float e4m3_table[256];

__attribute__((constructor)) static void fill_table(void)
{
    for (int i = 0; i < 256; i++)
        e4m3_table[i] = e4m3_decode((uint8_t)i);
}

static void fp8_row(const struct weight *w, int64_t r, float *out)
{
    const uint8_t *codes = (const uint8_t *)ref_ptr(w->data) + r * w->cols;
    const float *scale = (const float *)ref_ptr(w->scale) + r / 128 * ((w->cols + 127) / 128);

    for (int64_t i = 0; i < w->cols; i++)
        out[i] = e4m3_table[codes[i]] * scale[i / 128];
}

static void fp4_row(const struct weight *w, int64_t r, float *out)
{
    const uint8_t *pairs = (const uint8_t *)ref_ptr(w->data) + r * (w->cols / 2);
    const float *scale = (const float *)ref_ptr(w->scale) + r * (w->cols / 32);

    for (int64_t i = 0; i < w->cols; i += 2) {
        out[i] = e2m1_decode(pairs[i / 2] & 15u) * scale[i / 32];
        out[i + 1] = e2m1_decode(pairs[i / 2] >> 4) * scale[i / 32];
    }
}

void ref_weight_row(const struct weight *w, int64_t r, float *out)
{
    const uint16_t *b;

    switch (w->type) {
    case WEIGHT_FP8:
        fp8_row(w, r, out);
        break;
    case WEIGHT_FP4:
        /* A checkpoint's FP4 row has cols / 2 bytes: cols counts values. */
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
