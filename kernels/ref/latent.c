/* New latents: from wkv's output to rows, and the rows into the window rings. */
#include "kernels/ref/ref.h"

enum { D_MAX = 4096 };

struct latent_job {
    const struct kernels *k;
    uint8_t *rows;
    const uint16_t *kv;
    const struct weight *norm;
    const struct kernel_batch *b;
    const float *freq;
    const struct kernel_kv *view;
};

static void latent_part(void *arg, int part, int n_parts)
{
    const struct latent_job *job = arg;
    const struct kernel_dims *d = &job->k->dims;
    const int32_t *pos = ref_ptr(job->b->row_pos);
    struct ref_range r = ref_share(job->b->n_rows, part, n_parts);
    int D = d->head_dim;
    float x[D_MAX];

    for (int64_t t = r.begin; t < r.end; t++) {
        for (int i = 0; i < D; i++)
            x[i] = bf16_decode(job->kv[t * D + i]);
        ref_rms_norm_row(x, x, job->norm, D, d->norm_eps);
        ref_rotate(x, D, d->rope_dim, pos[t], job->freq, 1);
        kv_row_pack(job->rows + t * job->view->row_bytes, x, D, d->rope_dim, job->view->row_bytes);
    }
}

void ref_kv_latent(struct kernels *k, struct dev_ptr rows, struct dev_ptr kv,
                   const struct weight *norm, const struct kernel_batch *b, struct dev_ptr freq,
                   const struct kernel_kv *kv_view)
{
    struct latent_job job = {k, ref_ptr(rows), ref_ptr(kv), norm, b, ref_ptr(freq), kv_view};

    k->env.parallel(k->env.pool, latent_part, &job);
}

void ref_window_commit(struct kernels *k, struct dev_ptr rows, const struct kernel_batch *b,
                       const struct kernel_kv *v)
{
    const int32_t *seq_row = ref_ptr(b->seq_row), *start = ref_ptr(b->seq_start);
    const int32_t *slot = ref_ptr(b->seq_slot);
    const uint8_t *src = ref_ptr(rows);

    for (int s = 0; s < b->n_seqs; s++) {
        uint8_t *ring =
            (uint8_t *)ref_ptr(v->states) + (size_t)slot[s] * v->slot_stride + v->window_off;
        int n = seq_row[s + 1] - seq_row[s];
        int first = n > k->dims.window ? n - k->dims.window : 0;

        for (int i = first; i < n; i++)
            memcpy(ring + (size_t)((start[s] + i) % v->window_rows) * (size_t)v->row_bytes,
                   src + (size_t)(seq_row[s] + i) * (size_t)v->row_bytes, (size_t)v->row_bytes);
    }
}

uint8_t *ref_entry(const struct kernel_batch *b, const struct kernel_kv *v, int seq, int64_t g,
                   bool key)
{
    const int32_t *table =
        (const int32_t *)ref_ptr(b->block_table) + (int64_t)seq * b->table_stride;
    uint8_t *page =
        (uint8_t *)ref_ptr(v->pages) + (size_t)table[g / v->entries_per_page] * v->page_stride;
    size_t row = (size_t)(g % v->entries_per_page);

    return key ? page + v->key_off + row * (size_t)v->key_bytes
               : page + v->entry_off + row * (size_t)v->row_bytes;
}
