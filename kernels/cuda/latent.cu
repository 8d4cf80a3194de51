#include "kernels/cuda/latent.h"
#include "kernels/cuda/row.h"

enum { HEADS = CUDA_BLOCK / CUDA_WARP, CHUNK = 8 };

struct chunk {
    uint16_t v[CHUNK];
};

CUDA_DEVICE struct chunk load_chunk(const uint16_t *p)
{
    union {
        uint64_t bits[2];
        struct chunk c;
    } u;

    u.bits[0] = ((const uint64_t *)(const void *)p)[0];
    u.bits[1] = ((const uint64_t *)(const void *)p)[1];
    return u.c;
}

CUDA_DEVICE void store_chunk(uint16_t *p, struct chunk c)
{
    union {
        uint64_t bits[2];
        struct chunk c;
    } u;

    u.c = c;
    ((uint64_t *)(void *)p)[0] = u.bits[0];
    ((uint64_t *)(void *)p)[1] = u.bits[1];
}

/*
 * A warp a head, HEADS heads a block; a lane has chunks of 8 values, so that a pair of the rotation
 * never leaves it. Bound by bytes: 4 head_dim a head; the second reading comes from L1.
 */
CUDA_KERNEL(q_norm_rope_kernel, struct q_norm_rope_args)
{
    int64_t head = (int64_t)blockIdx.x * HEADS + (int)threadIdx.x / CUDA_WARP;
    int D = a.head_dim, lane = warp_lane();
    uint16_t *q = a.q + head * D;
    float sum = 0, scale;
    int32_t pos;

    if (head >= (int64_t)a.n_rows * a.n_heads)
        return; /* the whole warp */
    pos = a.row_pos[head / a.n_heads];
    for (int c = CHUNK * lane; c < D; c += CHUNK * CUDA_WARP) {
        struct chunk x = load_chunk(q + c);

        for (int i = 0; i < CHUNK; i++)
            sum += dev_bf16_grid(dev_from_bf16(x.v[i]) * dev_from_bf16(x.v[i]));
    }
    sum = dev_bf16_grid(dev_bf16_grid(warp_sum(sum, CUDA_WARP) / (float)D) + a.eps);
    scale = dev_bf16_grid(1 / sqrtf(sum));
    for (int c = CHUNK * lane; c < D; c += CHUNK * CUDA_WARP) {
        struct chunk x = load_chunk(q + c);
        float v[CHUNK];

        for (int i = 0; i < CHUNK; i++)
            v[i] = dev_bf16_grid(dev_from_bf16(x.v[i]) * scale);
        for (int i = 0; i < CHUNK; i += 2)
            if (c >= D - a.rope_dim)
                dev_rotate(&v[i], &v[i + 1], pos, a.freq[(c + i - (D - a.rope_dim)) / 2]);
        for (int i = 0; i < CHUNK; i++)
            x.v[i] = dev_to_bf16(v[i]);
        store_chunk(q + c, x);
    }
}

CUDA_API void cuda_q_norm_rope(cuda_stream s, struct q_norm_rope_args args)
{
    int64_t heads = (int64_t)args.n_rows * args.n_heads;

    if (heads > 0)
        CUDA_LAUNCH(q_norm_rope_kernel, struct q_norm_rope_args, (heads + HEADS - 1) / HEADS, 1,
                    CUDA_BLOCK, s, args);
}

/* A block a row, in shared memory (4 ROW_DIM_MAX bytes). Bound by bytes: 2 head_dim + row_bytes. */
CUDA_KERNEL(kv_latent_kernel, struct kv_latent_args)
{
    __shared__ float x[ROW_DIM_MAX], scratch[CUDA_BLOCK / CUDA_WARP];
    int64_t t = blockIdx.x;

    for (int i = (int)threadIdx.x; i < a.head_dim; i += CUDA_BLOCK)
        x[i] = dev_from_bf16(a.kv[t * a.head_dim + i]);
    row_norm(x, a.norm, a.head_dim, a.eps, scratch);
    row_rotate(x, a.head_dim, a.rope_dim, a.row_pos[t], a.freq);
    row_pack_entry(a.rows + t * a.row_bytes, x, a.head_dim, a.rope_dim, a.row_bytes);
}

CUDA_API void cuda_kv_latent(cuda_stream s, struct kv_latent_args args)
{
    if (args.n_rows > 0)
        CUDA_LAUNCH(kv_latent_kernel, struct kv_latent_args, args.n_rows, 1, CUDA_BLOCK, s, args);
}

/* A block a row; rows that the window has passed already are left out, so no two blocks write one
 * ring row. Bound by bytes: 2 row_bytes a row. */
CUDA_KERNEL(window_commit_kernel, struct window_commit_args)
{
    int64_t t = blockIdx.x;
    int seq = DEV(const int32_t, a.b.row_seq)[t], pos = DEV(const int32_t, a.b.row_pos)[t];
    const uint64_t *from = (const uint64_t *)(const void *)(a.rows + t * a.kv.row_bytes);
    uint64_t *to = (uint64_t *)(void *)(DEV(uint8_t, a.kv.states) +
                                        (int64_t)DEV(const int32_t, a.b.seq_slot)[seq] *
                                            (int64_t)a.kv.slot_stride +
                                        (int64_t)a.kv.window_off +
                                        (int64_t)(pos % a.kv.window_rows) * a.kv.row_bytes);

    if (t + a.window < DEV(const int32_t, a.b.seq_row)[seq + 1])
        return;
    for (int i = (int)threadIdx.x; i < a.kv.row_bytes / 8; i += CUDA_BLOCK)
        to[i] = from[i];
}

CUDA_API void cuda_window_commit(cuda_stream s, struct window_commit_args args)
{
    if (args.b.n_rows > 0)
        CUDA_LAUNCH(window_commit_kernel, struct window_commit_args, args.b.n_rows, 1, CUDA_BLOCK,
                    s, args);
}
