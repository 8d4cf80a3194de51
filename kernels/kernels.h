/*
 * kernels: everything the V4 forward asks of a device, as one table of operations.
 *
 * A backend (ref, cpu, cuda) fills struct kernel_ops. The model drives it through struct kernels
 * and never looks behind a struct dev_ptr: buffers are opaque, work is queued on the backend's
 * stream in call order, and only dev_read() and sync() wait. Host backends run each operation
 * before returning.
 *
 * Numbers   bf16, f32, FP8 (E4M3), FP4 (E2M1), scales E8M0, as in the checkpoint. Each operation
 *           rounds where the model rounds (named in its comment). `ref` accumulates in double and
 * is the spec; fast backends accumulate in f32 in an order that depends only on the inner dimension
 * and on positions, never on the batch, the chunking or the threads: the bits of a row are the same
 * whoever shares the call. Shapes    T rows (tokens) of n_seqs sequences, ragged; d hidden size, hc
 * residual streams, H heads of D dims with the last R rotated. Row-major, dense, in this order.
 * Errors    operations return nothing: a device fault is kept and reported by sync() and
 * dev_read(). Shapes are the caller's promise (asserted in debug builds). Threads   one caller.
 * Parallelism inside comes from kernel_env.parallel. Sources   DeepSeek-V4 reference inference
 * (model.py, kernel.py of the release); the equations stand at each operation. tests/oracle/dsv4.py
 * is the same in numpy.
 */
#ifndef BATON_KERNELS_KERNELS_H
#define BATON_KERNELS_KERNELS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* An address on the device; 0 is "none". Host backends hold a host address. Arithmetic only by
 * dev_at(). */
struct dev_ptr {
    uint64_t addr;
};

static inline struct dev_ptr dev_at(struct dev_ptr p, size_t bytes)
{
    return (struct dev_ptr){p.addr + bytes};
}

static inline bool dev_is_null(struct dev_ptr p)
{
    return p.addr == 0;
}

/* A copy, and what belongs to it. */
struct kernel_piece {
    struct dev_ptr dst, src;
    uint64_t bytes;
};

/* How a token is drawn from a row of logits: common/model/sampler.h, plain draws. */
struct kernel_draw {
    int32_t row;
    int32_t top_k;
    uint64_t seed, position;
    float temperature, top_p, min_p;
};

/* Memory of a device in bytes. */
struct kernel_room {
    size_t total;   /* of the device */
    size_t used;    /* by this process, dev_alloc() and the backend's own */
    size_t left;    /* for dev_alloc() */
    size_t outside; /* free, and kept for the driver: recordings take theirs there */
};

/* Sizes of the model that shape the operations; names as in config.json, shortened as in dsv4.py.
 */
struct kernel_dims {
    int hidden;         /* d */
    int hc;             /* residual streams */
    int n_heads;        /* H */
    int head_dim;       /* D */
    int rope_dim;       /* R */
    int q_lora_rank;    /* ql */
    int o_groups;       /* G */
    int o_lora_rank;    /* ol */
    int window;         /* attention window in tokens, the present one included */
    int index_n_heads;  /* Hi */
    int index_head_dim; /* Di */
    int index_topk;
    int n_experts;
    int n_active;
    int moe_inter; /* f */
    int vocab;
    int hc_iters;
    double hc_eps;
    double norm_eps;
    double route_scale;
    double swiglu_limit; /* 0: none */
    int max_rows;        /* largest T of a call: the backend sizes its workspace once, at open */
    int max_seqs;
    int max_context; /* tokens of the longest sequence */
};

/* What a backend needs from above. */
struct kernel_env {
    void (*parallel)(void *pool, void (*fn)(void *arg, int part, int n_parts), void *arg);
    void *pool;    /* first argument of parallel */
    int n_threads; /* how many parts parallel() makes */
    /* NUMA: how many nodes the parts are on, and which each is; NULL: one. A part takes the work
     * of its node first, and its node's memory holds the weights of that work. */
    int n_nodes;
    int (*node_of)(void *pool, int part);
    /* Matrices stay where src->data is and are put into kernel order a piece at a time when they
     * are used: slower, for when memory is short. Same bits. A backend may ignore it. */
    bool as_mapped;
    /* Tests: where a level can compute the same bits in two ways and takes the one that is faster
     * on this processor, the other one. */
    bool other_way;
};

/* ---- weights ------------------------------------------------------------------------------- */

enum weight_type { WEIGHT_BF16, WEIGHT_F32, WEIGHT_FP8, WEIGHT_FP4, WEIGHT_I64 };

/* A tensor as it lies in the checkpoint (mapped host memory, any alignment).
 * FP8: scale per 128 x 128 tile [ceil(rows/128)][ceil(cols/128)]; FP4: two values a byte, low
 * nibble first, scale per 32 columns [rows][cols/32]. Scales are E8M0 bytes or, when scale_is_f32,
 * powers of two in f32. NaN scales (E8M0 255) make NaN weights. */
struct weight_src {
    enum weight_type type;
    int64_t rows, cols;
    const void *data;
    const void *scale; /* NULL for BF16, F32, I64 */
    bool scale_is_f32;
    bool lookup; /* rows are looked up, not multiplied (the embedding): no backend need repack it */
    bool vector; /* read element by element (a norm), not multiplied: rows = 1 */
};

/* A weight on the device in the backend's own layout; filled by weight_load. */
struct weight {
    enum weight_type type;
    int64_t rows, cols;
    struct dev_ptr data, scale;
    int layout;   /* the backend's */
    size_t bytes; /* device memory it took; 0 when it borrows the mapped bytes */
};

struct expert_weights {
    struct weight w1, w2, w3; /* gate [f][d], down [d][f], up [f][d] */
};

/* ---- ragged batch and KV ------------------------------------------------------------------- */

/* Where the rows of a call belong. Arrays are device memory, filled by the model before the step.
 */
struct kernel_batch {
    int n_rows; /* T; rows of one sequence are neighbours, in order of position */
    int n_seqs;
    struct dev_ptr row_seq;   /* i32 [T]: index of the sequence in this batch */
    struct dev_ptr row_pos;   /* i32 [T]: position in its sequence, from 0 */
    struct dev_ptr tokens;    /* i32 [T] */
    struct dev_ptr seq_row;   /* i32 [n_seqs + 1]: first row of each sequence */
    struct dev_ptr seq_start; /* i32 [n_seqs]: position of its first row */
    struct dev_ptr seq_slot;  /* i32 [n_seqs]: its state slot */
    struct dev_ptr
        block_table; /* i32 [n_seqs][table_stride]: page of each 256-token logical page */
    int table_stride;
};

/*
 * The KV of one layer inside the pools (see common/kv/geometry.h for the layout):
 *
 *   page p of the page pool   pages + p * page_stride; inside: entry rows at entry_off, index keys
 * at key_off, entries_per_page rows each slot s of the state pool  states + s * slot_stride;
 * inside: window ring at window_off, compressor rings at comp_off and index_comp_off
 *
 * A latent or entry row: (D - R) FP8 codes, R bf16, (D - R)/64 E8M0 scales, zero padding to
 * row_bytes. An index key row: Di/2 bytes of FP4 pairs, Di/32 E8M0 scales: key_bytes. Rings: the
 * row of position p is p % n_rows. A compressor ring row is f32 kv[cols] then score[cols] (score
 * with ape already added), cols = 2D (ratio 4) or D (ratio 128). Rings are longer than what the
 * model reads, so that rejected draft tokens never overwrite live rows.
 */
struct kernel_kv {
    int ratio; /* 0, 4 or 128 */
    struct dev_ptr pages;
    size_t page_stride, entry_off, key_off;
    int entries_per_page;
    struct dev_ptr states;
    size_t slot_stride, window_off, comp_off, index_comp_off;
    int window_rows, comp_rows;
    int row_bytes, key_bytes;
};

/* Constants of one compressor (attention's or the indexer's). */
struct compressor_weights {
    struct weight wkv, wgate; /* BF16 [cols][d] */
    struct weight ape;        /* F32 [ratio][cols] */
    struct weight norm;       /* BF16 [dim] */
};

/* ---- the table ----------------------------------------------------------------------------- */

struct kernels;

struct kernel_ops {
    const char *name; /* "ref", "cpu-avx2", "cpu-avx512", "cuda" */

    /* -- memory and order -- */

    /* Zeroed device memory, aligned to 4096; addr 0 when there is none left. */
    struct dev_ptr (*dev_alloc)(struct kernels *k, size_t bytes);
    void (*dev_free)(struct kernels *k, struct dev_ptr p);
    /* Host to device, in stream order; src may be reused on return. */
    void (*dev_write)(struct kernels *k, struct dev_ptr dst, const void *src, size_t bytes);
    /* Device to host; waits. Returns 0, or -1 with k->error set when the stream has failed. */
    int (*dev_read)(struct kernels *k, void *dst, struct dev_ptr src, size_t bytes);
    /* Device to device, in stream order; ranges do not overlap. */
    void (*dev_copy)(struct kernels *k, struct dev_ptr dst, struct dev_ptr src, size_t bytes);
    /* Waits for all queued work. Returns 0, or -1 with k->error set. */
    int (*sync)(struct kernels *k);
    /* The host address of device memory that the host can read (host backends), else NULL. For
     * transfer and tests only, never for arithmetic in the model. */
    void *(*dev_host)(struct kernels *k, struct dev_ptr p);

    /* Where dev_host() gives nothing, else NULL: makes host memory, page-aligned, reachable for
     * dev_move(), at its own address. Returns 0, or -1 with k->error set. */
    int (*dev_share)(struct kernels *k, void *host, size_t bytes);
    void (*dev_unshare)(struct kernels *k, void *host);
    /* Copies n pieces, each of its ends memory of the device or shared by the host, and computes
     * the CRC32C of groups of them on the device side: piece ends of group g at group_end[g], its
     * bytes read from src, or after the copy from dst (crc_of_dst). Waits. crc [n_groups]. Returns
     * 0, or -1 with k->error set. */
    int (*dev_move)(struct kernels *k, const struct kernel_piece *pieces, size_t n,
                    const uint32_t *group_end, size_t n_groups, bool crc_of_dst, uint32_t *crc);

    /* Makes a weight usable by the operations below: copies, repacks or borrows src->data (borrowed
     * bytes must outlive the kernels). Returns 0, or -1 with k->error set (out of memory). */
    int (*weight_load)(struct kernels *k, const struct weight_src *src, struct weight *out);
    void (*weight_unload)(struct kernels *k, struct weight *w);
    /* Between weight_load() of a layer's experts and their first moe(), where the backend has this
     * (NULL: nothing to do). experts: as in moe(). Returns 0, or -1 with k->error set. */
    int (*experts_load)(struct kernels *k, const struct expert_weights *experts);
    void (*experts_unload)(struct kernels *k, const struct expert_weights *experts);

    /* -- recordings: NULL where calls are not worth it -- */

    /* Operations from record() to recorded() are kept instead of run; replay() runs them, with the
     * same arguments and whatever lies at their addresses then; how many sequences share a batch's
     * rows may differ. Nothing of "memory and order" may be called between. recorded() returns NULL
     * with k->error set when there is no memory. */
    void (*record)(struct kernels *k);
    void *(*recorded)(struct kernels *k);
    void (*replay)(struct kernels *k, void *recording);
    void (*forget)(struct kernels *k, void *recording);

    /* By kernels_close(). */
    void (*close)(struct kernels *k);

    /* -- dense -- */

    /* Bytes of one row of the quantised form of n bf16 values that act_quant() writes (the
     * backend's). */
    size_t (*act_quant_bytes)(struct kernels *k, int n);
    /* xq[t] = FP8-quantised x[t] per 128 consecutive values with power-of-two scales:
     * scale = 2^ceil(log2(max(amax, 1e-4) * f32(1/448))), code = e4m3(x / scale), ties to even.
     * x bf16 [T][n], n % 128 == 0 (n % 32 == 0 with a short last block is not used by any release).
     */
    void (*act_quant)(struct kernels *k, struct dev_ptr xq, struct dev_ptr x, int T, int n);
    /* y = bf16(xq . W^T); W FP8 or FP4 [rows][cols] with its scales; y bf16 [T][rows]. */
    void (*linear_q)(struct kernels *k, struct dev_ptr y, struct dev_ptr xq, const struct weight *w,
                     int T);
    /* y = x . W^T; x bf16 [T][cols]; W BF16; y bf16 [T][rows] (rounded) or, with y_f32, f32. */
    void (*linear)(struct kernels *k, struct dev_ptr y, struct dev_ptr x, const struct weight *w,
                   int T, bool y_f32);
    /* Block-diagonal: group g of w's rows (rows/groups of them) reads columns g of x:
     * y[t][g*r + i] = bf16(sum_j x[t][g*cols + j] * W[g*r + i][j]); x bf16 [T][groups*cols], NOT
     * quantised; W FP8 [groups*r][cols], scales multiplied in. This is wo_a. */
    void (*linear_grouped)(struct kernels *k, struct dev_ptr y, struct dev_ptr x,
                           const struct weight *w, int T, int groups);

    /* -- norms, streams -- */

    /* y = bf16(w * x / sqrt(mean(x^2) + eps)); x, y bf16 [T][n], y may be x; w BF16 [n]. */
    void (*rms_norm)(struct kernels *k, struct dev_ptr y, struct dev_ptr x, const struct weight *w,
                     int T, int n);
    /* streams[t][s] = table[tokens[t]] for every s < copies; table BF16 [vocab][d];
     * streams bf16 [T][copies][d]. */
    void (*embed)(struct kernels *k, struct dev_ptr streams, const struct weight *table,
                  struct dev_ptr tokens, int T, int copies);
    /* Hyper-connection read, then the sublayer's RMS norm (skipped when norm is NULL):
     *   mix = f32((s . fn^T) / sqrt(mean(s^2) + norm_eps)), s the hc*d concatenated streams
     *   pre, post, comb = sinkhorn_split(mix)  (f32; see dsv4.py sinkhorn_split)
     *   x = rms_norm(bf16(sum_h pre[h] * streams[h]))
     * streams bf16 [T][hc][d]; fn F32 [(2+hc)hc][hc*d]; scale F32 [3]; base F32 [(2+hc)hc];
     * x bf16 [T][d]; post f32 [T][hc]; comb f32 [T][hc (from)][hc (to)]. */
    void (*hc_read)(struct kernels *k, struct dev_ptr x, struct dev_ptr post, struct dev_ptr comb,
                    struct dev_ptr streams, const struct weight *fn, const struct weight *scale,
                    const struct weight *base, const struct weight *norm, int T);
    /* out[t][to] = bf16(post[t][to] * y[t] + sum_from comb[t][from][to] * streams[t][from]);
     * out may be streams. */
    void (*hc_write)(struct kernels *k, struct dev_ptr out, struct dev_ptr y,
                     struct dev_ptr streams, struct dev_ptr post, struct dev_ptr comb, int T);
    /* Head read: pre = f32(sigmoid(mix * scale[0] + base) + hc_eps) with mix as in hc_read and fn
     * F32 [hc][hc*d]; x = rms_norm(bf16(sum_h pre[h] * streams[rows[i]][h])) for i < n; rows i32
     * [n]; x bf16 [n][d]. */
    void (*hc_head)(struct kernels *k, struct dev_ptr x, struct dev_ptr streams,
                    struct dev_ptr rows, const struct weight *fn, const struct weight *scale,
                    const struct weight *base, const struct weight *norm, int n);
    /* MTP: out[t][s] = bf16(e[t] + h[t][s]); e bf16 [T][d]; h, out bf16 [T][hc][d], out may be h.
     */
    void (*mtp_join)(struct kernels *k, struct dev_ptr out, struct dev_ptr e, struct dev_ptr h,
                     int T);

    /* -- attention -- */

    /* q bf16 [T][H][D] in place: weightless RMS norm per head with every step rounded to bf16
     * (dsv4.py head_norm), then the last R dims rotated by row_pos * freq (f32 product, neighbour
     * pairs). freq f32 [R/2]. */
    void (*q_norm_rope)(struct kernels *k, struct dev_ptr q, const struct kernel_batch *b,
                        struct dev_ptr freq);
    /* New latents: rows[t] = row format of rms_norm(kv[t], norm) with the last R dims rotated, the
     * others FP8 per 64. kv bf16 [T][D] (the output of wkv); rows [T][row_bytes]. */
    void (*kv_latent)(struct kernels *k, struct dev_ptr rows, struct dev_ptr kv,
                      const struct weight *norm, const struct kernel_batch *b, struct dev_ptr freq,
                      const struct kernel_kv *kv_view);
    /* Runs one compressor over the new rows: adds ape, writes every entry that a row completes into
     * its page (for_index: RoPE, Hadamard, FP4 into key rows; else RoPE, FP8 per 64 into entry
     * rows), then stores the rows into the slot's ring (attention's at comp_off, the indexer's at
     * index_comp_off). kv, score f32 [T][cols]: projections of this batch, score without ape. See
     * dsv4.py Compressor. */
    void (*compress)(struct kernels *k, struct dev_ptr kv, struct dev_ptr score,
                     const struct compressor_weights *w, const struct kernel_batch *b,
                     const struct kernel_kv *kv_view, struct dev_ptr freq, bool for_index);
    /* Indexer queries, in place: q bf16 [T][Hi][Di]: RoPE on the last R dims, Hadamard, FP4 per 32
     * (the values stay bf16, on the FP4 grid); weights bf16 [T][Hi] = bf16(weights * f32(Di^-0.5 *
     * Hi^-0.5)). */
    void (*index_query)(struct kernels *k, struct dev_ptr q, struct dev_ptr weights,
                        const struct kernel_batch *b, struct dev_ptr freq);
    /* chosen[t] = the index_topk visible entries ((g + 1) * ratio <= pos + 1) of largest score
     * bf16(sum_h bf16(relu(bf16(q_h . k_g)) * w_h)), in order of falling score (equal: lower entry
     * first), then -1; chosen i32 [T][index_topk]. With as many visible entries as fit, all are
     * chosen, also in that order. */
    void (*index_select)(struct kernels *k, struct dev_ptr chosen, struct dev_ptr q,
                         struct dev_ptr weights, const struct kernel_batch *b,
                         const struct kernel_kv *kv_view);
    /* o[t][h] = rotate_back(bf16(sum_j bf16(p_j) kv_j / (sum_j p_j + exp(sink_h - max)))),
     * p_j = exp(q.kv_j * D^-0.5 - max); keys are: the window (positions pos-window+1 .. pos: from
     * `rows` when in this batch, else from the slot's ring), then the entries: chosen[t] (ratio 4),
     * all visible ones (ratio 128), none (ratio 0). The sink is not part of max. rotate_back: last
     * R dims by -pos * freq, bf16. q, o bf16 [T][H][D], o != q; sink F32 [H]; chosen may be null
     * unless ratio 4. */
    void (*attention)(struct kernels *k, struct dev_ptr o, struct dev_ptr q, struct dev_ptr rows,
                      struct dev_ptr chosen, const struct weight *sink,
                      const struct kernel_batch *b, const struct kernel_kv *kv_view,
                      struct dev_ptr freq);
    /* Copies the last min(n, window) new latents of each sequence into its slot's ring. Call after
     * attention(): until then the ring holds the window of the first new row. */
    void (*window_commit)(struct kernels *k, struct dev_ptr rows, const struct kernel_batch *b,
                          const struct kernel_kv *kv_view);

    /* -- experts -- */

    /* affinity = f32(sqrt(softplus(f32(x . gate^T)))); ids: n_active largest of f32(affinity +
     * bias), best first, equal: lower id first; or, with a table (hash layers, I64
     * [vocab][n_active]), table[token]. weights = f32(affinity[ids] / sum * route_scale). x bf16
     * [T][d]; gate BF16 [E][d]; bias F32 [E] or NULL; ids i32 [T][n_active]; weights f32
     * [T][n_active]. */
    void (*gate)(struct kernels *k, struct dev_ptr ids, struct dev_ptr weights, struct dev_ptr x,
                 const struct weight *gate, const struct weight *bias, const struct weight *table,
                 struct dev_ptr tokens, int T);
    /* y = bf16(shared(x) + sum of the chosen experts in ascending id), each expert's result bf16,
     * the sum f32 or wider. expert(x, w) = linear_q(quant(bf16(swiglu(w1 x, w3 x) * w)), w2);
     * swiglu(g, u) = silu(min(g, limit)) * clip(u, -limit, limit), g and u bf16.
     * xq is act_quant(x); experts [n_experts], host array, the same at every call of a layer. */
    void (*moe)(struct kernels *k, struct dev_ptr y, struct dev_ptr xq, struct dev_ptr ids,
                struct dev_ptr weights, const struct expert_weights *experts,
                const struct expert_weights *shared, int T);
    /* The same in two halves, for a rank that holds some of the experts (common/model/shard.h); a
     * backend without them (NULL) runs on one rank.
     * parts[t][i] = expert ids[t][i]'s result, bf16, when first <= id < first + n, else +0;
     * parts[t][n_active] = shared(x), or +0 when shared is NULL. parts bf16 [T][n_active + 1][d].
     */
    void (*moe_parts)(struct kernels *k, struct dev_ptr parts, struct dev_ptr xq,
                      struct dev_ptr ids, struct dev_ptr weights,
                      const struct expert_weights *experts, const struct expert_weights *shared,
                      int first, int n, int T);
    /* y[t] = the sum of parts[t], in the order and with the rounding of moe(): bit for bit what it
     * gives. */
    void (*moe_sum)(struct kernels *k, struct dev_ptr y, struct dev_ptr parts, struct dev_ptr ids,
                    int T);

    /* -- a device with memory of its own: NULL on hosts -- */

    /* What dev_alloc() has given and can still give, and what is free beside that. Any thread
     * while the caller's is in no other call. */
    void (*room)(struct kernels *k, struct kernel_room *out);
    /* For collectives (common/comm): the stream that operations are queued on (cudaStream_t); the
     * calling thread, any, may queue on it from now on. */
    void *(*stream)(struct kernels *k);
    /* Queued: out[t][r] = in[r][t] of r < n, t < n_rows; rows of row_bytes; no overlap. */
    void (*dev_columns)(struct kernels *k, struct dev_ptr out, struct dev_ptr in, int n,
                        size_t n_rows, size_t row_bytes);
    /* Queued: from then on marked() (any thread) gives n; 0 before. */
    void (*mark)(struct kernels *k, uint64_t n);
    uint64_t (*marked)(struct kernels *k);
    /* The tokens that common/model/sampler.h draws from rows of logits (f32 [..][vocab], read
     * only); -1: nothing can be drawn. At most one draw a row, rows in ascending order. Waits.
     * Returns 0, or -1 with k->error set. */
    int (*sample)(struct kernels *k, struct dev_ptr logits, const struct kernel_draw *draws, int n,
                  int32_t *ids);
};

struct kernels {
    const struct kernel_ops *ops;
    struct kernel_dims dims;
    struct kernel_env env;
    void *self;      /* the backend's */
    char error[256]; /* why weight_load, dev_read or sync failed */
};

/* ---- opening ------------------------------------------------------------------------------- */

enum cpu_isa { CPU_ISA_REF, CPU_ISA_AVX2, CPU_ISA_AVX512, CPU_ISA_AMX };

/** "ref", "avx2", "avx512", "amx": what --cpu-isa calls them. */
extern const char *const kernels_cpu_names[];
/** @return false: no level has that name; *out is left alone */
bool kernels_cpu_named(const char *name, enum cpu_isa *out);

/* The best level this processor runs. */
enum cpu_isa kernels_cpu_best(void);

/**
 * Opens the CPU backend at a level (never above kernels_cpu_best(): returns -1 with k->error set).
 * CPU_ISA_REF is kernels/ref: plain C, double accumulation, every bit as tests/oracle/dsv4.py.
 * @return 0; the caller ends with kernels_close(k)
 */
int kernels_open_cpu(struct kernels *k, enum cpu_isa isa, const struct kernel_dims *dims,
                     const struct kernel_env *env);

/**
 * Opens the CUDA backend on a GPU, the n-th that the driver shows.
 * @return 0; -1 with k->error saying why not: a build without nvcc, no driver, no such GPU, one
 *         that is too old, too little memory, a model that its kernels do not take
 */
int kernels_open_cuda(struct kernels *k, int ordinal, const struct kernel_dims *dims,
                      const struct kernel_env *env);

void kernels_close(struct kernels *k);

#endif
