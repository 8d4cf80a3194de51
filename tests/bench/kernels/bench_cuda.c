/*
 * bench_cuda: times the kernels of kernels/cuda on the first GPU at the geometry of V4 Flash, next
 * to the bandwidth that a device copy reaches in the same run.
 *
 * usage: bench_cuda [milliseconds a case, 50]
 * Bytes and FLOPs are those the operation cannot do without (see the bounds above each kernel), so
 * shares are of a roofline, not of what the kernel moves.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cuda_runtime_api.h>

#include "kernels/cuda/attention.h"
#include "kernels/cuda/compress.h"
#include "kernels/cuda/index.h"
#include "kernels/cuda/linear.h"
#include "kernels/cuda/moe.h"
#include "kernels/cuda/norm.h"
#include "kernels/cuda/sampler.h"
#include "kernels/cuda/streams.h"

enum {
    HIDDEN = 4096,
    HEADS = 64,
    DIM = 512,
    ROPE = 64,
    WINDOW = 128,
    TOPK = 512,
    INDEX_HEADS = 64,
    VOCAB = 129280,
    ROW_BYTES = 584,
    KEY_BYTES = 68,
    CONTEXT = 1 << 20,
    ROWS_MAX = 4096,
    EXPERTS = 256,
    ACTIVE = 6,
    INTER = 2048
};

static int native_e4m3;

static double copy_rate; /* bytes a second, read plus written */
static float case_ms = 50;

static void check(cudaError_t error, const char *what)
{
    if (error == cudaSuccess)
        return;
    fprintf(stderr, "bench_cuda: %s: %s\n", what, cudaGetErrorString(error));
    exit(1);
}

/* Device memory of random bytes that are no NaN in any format here; or zeroes. */
static void *device(size_t bytes, int random)
{
    void *p;
    enum { BLOCK = 1 << 20 };

    check(cudaMalloc(&p, bytes + BLOCK), "memory");
    check(cudaMemset(p, 0, bytes), "memset");
    if (random) {
        uint8_t *block = malloc(BLOCK);
        uint64_t x = 88172645463325252u;

        for (int i = 0; i < BLOCK; i++) {
            x ^= x << 13, x ^= x >> 7, x ^= x << 17;
            block[i] = (uint8_t)(x >> 24 & 0xBF); /* exponents below 2 */
        }
        for (size_t at = 0; at < bytes; at += BLOCK)
            check(cudaMemcpy((char *)p + at, block, BLOCK, cudaMemcpyHostToDevice), "fill");
        free(block);
    }
    return p;
}

static struct dev_ptr ints(const int32_t *src, size_t n)
{
    void *p = device(n * 4, 0);

    check(cudaMemcpy(p, src, n * 4, cudaMemcpyHostToDevice), "copy");
    return (struct dev_ptr){(uint64_t)(uintptr_t)p};
}

/* ---- timing ---- */

/* Seconds of one call, over as many as fill case_ms. */
static double time_of(void (*run)(void *), void *arg)
{
    cudaEvent_t begin, end;
    float ms = 0;
    int n = 1;

    check(cudaEventCreate(&begin), "event");
    check(cudaEventCreate(&end), "event");
    run(arg); /* warm */
    for (;; n *= 2) {
        check(cudaEventRecord(begin, 0), "record");
        for (int i = 0; i < n; i++)
            run(arg);
        check(cudaEventRecord(end, 0), "record");
        check(cudaEventSynchronize(end), "a kernel");
        check(cudaGetLastError(), "a launch");
        check(cudaEventElapsedTime(&ms, begin, end), "time");
        if (ms >= case_ms || n >= 1 << 20)
            break;
    }
    cudaEventDestroy(begin);
    cudaEventDestroy(end);
    return (double)ms / 1e3 / n;
}

static void report(const char *name, int T, double bytes, double flops, void (*run)(void *),
                   void *arg)
{
    double s = time_of(run, arg);

    printf("%-34s rows %5d  %9.2f us  %7.1f GB/s (%5.1f %% of copy)", name, T, s * 1e6,
           bytes / s / 1e9, 100 * bytes / s / copy_rate);
    if (flops > 0)
        printf("  %7.2f TFLOP/s", flops / s / 1e12);
    printf("\n");
}

struct copy {
    void *to, *from;
    size_t bytes;
};

static void run_copy(void *arg)
{
    struct copy *c = arg;

    cudaMemcpyAsync(c->to, c->from, c->bytes, cudaMemcpyDeviceToDevice, 0);
}

/* ---- streams ---- */

static void run_read(void *arg)
{
    struct hc_read_args *a = arg;

    cuda_hc_read(0, *a, a->n_fn); /* n_fn: set anew by the call; carries T here */
}

static void run_write(void *arg)
{
    struct hc_read_args *a = arg;
    struct hc_write_args w = {
        (uint16_t *)(uintptr_t)a->streams, a->x, a->streams, a->post, a->comb, HIDDEN};

    cuda_hc_write(0, w, a->n_fn);
}

static void bench_streams(void)
{
    static const int rows[] = {1, 64, ROWS_MAX};
    double fn = 24.0 * 4 * HIDDEN * 4, row = 4.0 * HIDDEN * 2;
    struct hc_read_args a = {.x = device((size_t)ROWS_MAX * HIDDEN * 2, 0),
                             .post = device((size_t)ROWS_MAX * 16, 1),
                             .comb = device((size_t)ROWS_MAX * 64, 1),
                             .streams = device((size_t)ROWS_MAX * 4 * HIDDEN * 2, 1),
                             .fn = device((size_t)fn, 1),
                             .scale = device(12, 1),
                             .base = device(96, 1),
                             .norm = device(HIDDEN * 2, 1),
                             .partial = device(cuda_hc_partial_bytes(HIDDEN, ROWS_MAX), 0),
                             .hidden = HIDDEN,
                             .iters = 20,
                             .hc_eps = 1e-6f,
                             .norm_eps = 1e-6f};

    for (int i = 0; i < 3; i++) {
        a.n_fn = rows[i];
        report("hc_read", rows[i], fn + rows[i] * (row + HIDDEN * 2), 48.0 * 4 * HIDDEN * rows[i],
               run_read, &a);
        report("hc_write", rows[i], rows[i] * (2 * row + HIDDEN * 2), 0, run_write, &a);
    }
}

/* ---- products ---- */

static void run_linear(void *arg)
{
    cuda_linear(0, *(struct linear_args *)arg);
}

/* Scales are 0 bits: powers of two that are small, which costs the same. */
static void bench_linear(const char *name, int type, int plain, int rows, int cols)
{
    static const int tokens[] = {1, 16, 64, 2048};
    size_t matrix = panel_bytes(type, rows, cols), scales = panel_scale_bytes(type, rows, cols);
    size_t x_row = plain ? (size_t)cols * 2 : cuda_quant_bytes(cols);
    struct linear_args a = {.y = device((size_t)2048 * (size_t)rows * 4, 0),
                            .x = device(2048 * x_row, 1),
                            .w = {.data = device(matrix, 1), .rows = rows, .cols = cols},
                            .y_stride = rows,
                            .x_bytes = x_row,
                            .type = type,
                            .plain = plain,
                            .native = native_e4m3,
                            .groups = 1};

    a.w.scale = device(scales, 0);
    for (int i = 0; i < 4; i++) {
        int T = a.T = tokens[i];

        report(name, T, (double)(matrix + scales) + T * ((double)x_row + rows * 2.0),
               2.0 * T * rows * cols, run_linear, &a);
    }
    check(cudaFree(a.y), "free");
    check(cudaFree((void *)(uintptr_t)a.x), "free");
    check(cudaFree((void *)(uintptr_t)a.w.data), "free");
    check(cudaFree((void *)(uintptr_t)a.w.scale), "free");
}

/* ---- experts ---- */

static void run_moe(void *arg)
{
    cuda_moe_parts(0, *(struct moe_args *)arg);
}

static int32_t *random_ids(int T, int *n_touched)
{
    int32_t *ids = malloc((size_t)T * ACTIVE * 4);
    char touched[EXPERTS] = {0};

    *n_touched = 0;
    for (int t = 0; t < T; t++)
        for (int i = 0; i < ACTIVE; i++) { /* distinct ones of a token */
            int e = (t * 97 + i * 43 + t * t % 29) % EXPERTS;

            ids[t * ACTIVE + i] = e;
            *n_touched += !touched[e];
            touched[e] = 1;
        }
    return ids;
}

/* The experts of one layer of Flash: FP4, and the shared one in FP8. */
static void bench_moe(void)
{
    static const int tokens[] = {1, 4, 16, 64, 1024};
    size_t each = panel_bytes(PANEL_FP4, INTER, HIDDEN);
    size_t scale = panel_scale_bytes(PANEL_FP4, INTER, HIDDEN);
    size_t shared = panel_bytes(PANEL_FP8, INTER, HIDDEN);
    uint8_t *matrices = device(EXPERTS * 3 * each, 1), *scales = device(EXPERTS * 3 * scale, 0);
    uint8_t *fp8 = device(3 * shared, 1), *fp8_scales = device(3 * 4096, 0);
    struct moe_expert list[EXPERTS];
    struct moe_args a = {.parts = device((size_t)1024 * (ACTIVE + 1) * HIDDEN * 2, 0),
                         .xq = device(1024 * cuda_quant_bytes(HIDDEN), 1),
                         .weights = device((size_t)1024 * ACTIVE * 4, 0),
                         .shared = {fp8, fp8 + shared, fp8 + 2 * shared, fp8_scales,
                                    fp8_scales + 4096, fp8_scales + 8192},
                         .has_shared = 1,
                         .n = EXPERTS,
                         .type = PANEL_FP4,
                         .n_experts = EXPERTS,
                         .n_active = ACTIVE,
                         .d = HIDDEN,
                         .f = INTER,
                         .native = native_e4m3,
                         .limit = 10};

    for (int e = 0; e < EXPERTS; e++) {
        uint8_t *m = matrices + (size_t)e * 3 * each, *s = scales + (size_t)e * 3 * scale;

        list[e] = (struct moe_expert){m, m + each, m + 2 * each, s, s + scale, s + 2 * scale};
    }
    a.table = device(sizeof(list), 0);
    check(cudaMemcpy((void *)(uintptr_t)a.table, list, sizeof(list), cudaMemcpyHostToDevice),
          "table");
    a.work = device(cuda_moe_work_bytes(EXPERTS, ACTIVE, INTER, 1024), 0);
    for (int i = 0; i < 5; i++) {
        int T = a.T = tokens[i], n;
        int32_t *ids = random_ids(T, &n);

        a.ids = (const int32_t *)(uintptr_t)ints(ids, (size_t)T * ACTIVE).addr;
        report("moe, 256 experts of FP4, 6 active", T,
               (double)n * 3 * (double)(each + scale) + 3.0 * (double)shared,
               6.0 * T * (ACTIVE + 1) * INTER * HIDDEN, run_moe, &a);
        free(ids);
    }
}

/* ---- KV ---- */

/* Rows of one position each, in sequences of their own, or all of one sequence. */
static struct kernel_batch batch_of(int T, int pos, int one_sequence)
{
    static int32_t seq[ROWS_MAX], at[ROWS_MAX], row[ROWS_MAX + 1], start[ROWS_MAX], slot[ROWS_MAX];
    static int32_t table[CONTEXT / 256];
    struct kernel_batch b = {.n_rows = T, .n_seqs = one_sequence ? 1 : T};

    for (int t = 0; t < T; t++) {
        seq[t] = one_sequence ? 0 : t;
        at[t] = one_sequence ? pos + t : pos;
        row[t] = t;
        start[t] = pos;
        slot[t] = t % 64;
    }
    row[b.n_seqs] = T;
    for (int i = 0; i < CONTEXT / 256; i++)
        table[i] = i;
    b.row_seq = ints(seq, (size_t)T);
    b.row_pos = ints(at, (size_t)T);
    b.seq_row = ints(row, (size_t)b.n_seqs + 1);
    b.seq_start = ints(start, (size_t)T);
    b.seq_slot = ints(slot, (size_t)T);
    b.block_table = ints(table, CONTEXT / 256); /* every sequence has the same pages */
    b.table_stride = 0;
    return b;
}

static struct kernel_kv view_of(int ratio)
{
    struct kernel_kv v = {.ratio = ratio,
                          .entries_per_page = 256 / ratio,
                          .window_rows = WINDOW + 16,
                          .comp_rows = ratio == 4 ? 24 : 144,
                          .row_bytes = ROW_BYTES,
                          .key_bytes = KEY_BYTES};

    v.key_off = (size_t)v.entries_per_page * ROW_BYTES;
    v.page_stride = v.key_off + (size_t)v.entries_per_page * KEY_BYTES;
    v.comp_off = (size_t)v.window_rows * ROW_BYTES;
    v.slot_stride = v.comp_off + (size_t)v.comp_rows * 2 * DIM * 8;
    v.pages.addr = (uint64_t)(uintptr_t)device(CONTEXT / 256 * v.page_stride, 1);
    v.states.addr = (uint64_t)(uintptr_t)device(64 * v.slot_stride, 1);
    return v;
}

static void run_attention(void *arg)
{
    cuda_attention(0, *(struct attention_args *)arg);
}

static void bench_attention(const struct kernel_kv *v, int T, int pos, int one_sequence, int split)
{
    struct attention_args a = {.o = device((size_t)T * HEADS * DIM * 2, 0),
                               .q = device((size_t)T * HEADS * DIM * 2, 1),
                               .rows = device((size_t)T * ROW_BYTES, 1),
                               .sink = device(HEADS * 4, 1),
                               .freq = device(ROPE * 2, 1),
                               .b = batch_of(T, pos, one_sequence),
                               .kv = *v,
                               .n_heads = HEADS,
                               .head_dim = DIM,
                               .rope_dim = ROPE,
                               .window = WINDOW,
                               .index_topk = TOPK};
    int entries = v->ratio == 4 ? TOPK : (pos + 1) / v->ratio;
    double keys = WINDOW + entries;
    int32_t *chosen = malloc((size_t)T * TOPK * 4);
    char name[64];

    for (int i = 0; i < T * TOPK; i++) /* spread over the context */
        chosen[i] = (int32_t)((int64_t)(i * 2654435761u % (unsigned)(pos / 4)));
    a.chosen = (const int32_t *)(uintptr_t)ints(chosen, (size_t)T * TOPK).addr;
    free(chosen);
    a.n_splits = cuda_attention_splits(v->ratio, WINDOW, TOPK, pos + T);
    if (split)
        a.partial = device(cuda_attention_partial_bytes(HEADS, DIM, a.n_splits, T), 0);
    snprintf(name, sizeof(name), "attention 1/%d, %g keys%s", v->ratio, keys,
             split ? ", split" : "");
    report(name, T, T * (keys * ROW_BYTES + 4.0 * HEADS * DIM), 4.0 * T * HEADS * DIM * keys,
           run_attention, &a);
}

static void run_select(void *arg)
{
    cuda_index_select(0, *(struct index_select_args *)arg);
}

static void bench_select(const struct kernel_kv *v, int T, int pos)
{
    struct index_select_args a = {.chosen = device((size_t)T * TOPK * 4, 0),
                                  .q = device((size_t)T * INDEX_HEADS * INDEX_DIM * 2, 1),
                                  .weights = device((size_t)T * INDEX_HEADS * 2, 1),
                                  .b = batch_of(T, pos, 0),
                                  .v = *v,
                                  .n_heads = INDEX_HEADS,
                                  .topk = TOPK,
                                  .max_context = pos + 1,
                                  .round_rows = T};
    double keys = (pos + 1) / 4.0;
    char name[64];

    a.work = device((size_t)T * cuda_index_row_bytes(4, pos + 1), 0);
    snprintf(name, sizeof(name), "index_select of %g", keys);
    report(name, T, T * keys * KEY_BYTES, 2.0 * T * keys * INDEX_HEADS * INDEX_DIM, run_select, &a);
}

static void run_compress(void *arg)
{
    cuda_compress(0, *(struct compress_args *)arg);
}

static void bench_compress(const struct kernel_kv *v, int T)
{
    int cols = v->ratio == 4 ? 2 * DIM : DIM;
    struct compress_args a = {.kv = device((size_t)T * (size_t)cols * 4, 1),
                              .score = device((size_t)T * (size_t)cols * 4, 1),
                              .ape = device((size_t)(v->ratio * cols) * 4, 1),
                              .norm = device(DIM * 2, 1),
                              .freq = device(ROPE * 2, 1),
                              .b = batch_of(T, 0, 1),
                              .v = *v,
                              .pooled = device((size_t)T * DIM * 2, 0),
                              .cols = cols,
                              .dim = DIM,
                              .rope_dim = ROPE,
                              .eps = 1e-6f};
    char name[64];

    snprintf(name, sizeof(name), "compress 1/%d", v->ratio);
    report(name, T, 8.0 * T * cols, 0, run_compress, &a);
}

/* ---- sampler ---- */

struct sample_case {
    struct sample_args args;
    int T;
};

static void run_sample(void *arg)
{
    struct sample_case *c = arg;

    cuda_sample(0, c->args, c->T);
}

static void bench_sample(int T)
{
    struct sample_row *rows = calloc((size_t)T, sizeof(*rows));
    struct sample_case c = {.args = {.ids = device((size_t)T * 4, 0),
                                     .logits = device((size_t)T * VOCAB * 4, 1),
                                     .work = device(cuda_sample_bytes(VOCAB, T), 0),
                                     .vocab = VOCAB},
                            .T = T};
    void *p = device((size_t)T * sizeof(*rows), 0);

    for (int t = 0; t < T; t++)
        rows[t] = (struct sample_row){
            .seed = (uint64_t)t, .temperature = 1, .top_p = 0.95f, .top_k = 50, .n_top = -1};
    check(cudaMemcpy(p, rows, (size_t)T * sizeof(*rows), cudaMemcpyHostToDevice), "rows");
    free(rows);
    c.args.rows = p;
    report("sample, top_k 50, top_p 0.95", T, 4.0 * T * VOCAB, 0, run_sample, &c);
}

int main(int argc, char **argv)
{
    struct cudaDeviceProp device_is;
    struct copy copy = {.bytes = (size_t)1 << 30};
    int n = 0;
    cudaError_t error = cudaGetDeviceCount(&n);

    if (error != cudaSuccess || n == 0) {
        printf("skipped: no GPU: %s\n",
               error != cudaSuccess ? cudaGetErrorString(error) : "none here");
        return 77;
    }
    if (argc > 1)
        case_ms = (float)atof(argv[1]);
    check(cudaGetDeviceProperties(&device_is, 0), "device");
    copy.to = device(copy.bytes, 0);
    copy.from = device(copy.bytes, 1);
    copy_rate = 2.0 * (double)copy.bytes / time_of(run_copy, &copy);
    printf("%s, %d SMs; a device copy moves %.0f GB/s\n", device_is.name,
           device_is.multiProcessorCount, copy_rate / 1e9);
    check(cudaFree(copy.to), "free");
    check(cudaFree(copy.from), "free");

    struct kernel_kv four = view_of(4), many = view_of(128);

    native_e4m3 = device_is.major * 10 + device_is.minor >= 89;
    bench_streams();
    bench_linear("linear FP8 4096 x 4096", PANEL_FP8, 0, 4096, 4096);
    bench_linear("linear FP8 512 x 4096", PANEL_FP8, 0, 512, 4096);
    bench_linear("linear FP8 32768 x 1024", PANEL_FP8, 0, 32768, 1024);
    bench_linear("linear bf16 129280 x 4096", PANEL_BF16, 1, VOCAB, HIDDEN);
    bench_moe();
    for (int T = 1; T <= 64; T *= 8) {
        bench_attention(&four, T, 32767, 0, 1);
        bench_attention(&four, T, 32767, 0, 0);
        bench_attention(&many, T, 131071, 0, 1);
    }
    bench_attention(&four, 2048, 65536, 1, 0);
    bench_attention(&many, 2048, 65536, 1, 0);
    bench_select(&four, 1, 32767);
    bench_select(&four, 1, CONTEXT - 1);
    bench_select(&four, 16, CONTEXT - 1);
    bench_compress(&four, ROWS_MAX);
    bench_compress(&many, ROWS_MAX);
    bench_sample(1);
    bench_sample(64);
    return 0;
}
