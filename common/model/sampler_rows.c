#include "common/model/sampler_rows.h"

#include "common/model/sampler_lanes.h"
#include "kernels/sampler_noise.h"

#include <math.h>

enum { ROWS = ROW_CHUNK / ROW_LANES };

/* 2^((x - best) * scale) to 2e-7 relative; the exponent is cut at -126, and there NaN goes, too. */
LANES vf probability(vf x, struct row_scale s)
{
    const vf magic = vf_set(0x1.8p23f); /* adding it rounds to an integer, in the low bits */
    vf y = vf_max(vf_mul(vf_sub(x, vf_set(s.best)), vf_set(s.scale)), vf_set(-126));
    vf shifted = vf_add(y, magic);
    vf f = vf_sub(y, vf_sub(shifted, magic)); /* in [-1/2, 1/2] */
    vf p = vf_set(0x1.5BBA13p-10f);           /* 2^f: relative minimax with 2^0 = 1, 9e-8 */

    p = vf_add(vf_mul(p, f), vf_set(0x1.3CEA87p-7f));
    p = vf_add(vf_mul(p, f), vf_set(0x1.C6B753p-5f));
    p = vf_add(vf_mul(p, f), vf_set(0x1.EBF9BCp-3f));
    p = vf_add(vf_mul(p, f), vf_set(0x1.62E429p-1f));
    p = vf_add(vf_mul(p, f), vf_set(1));
    return vf_scale_bits(p, shifted);
}

static void maxima(const struct sampler_row *row, float *group_max, float *chunk_max)
{
    for (int32_t c = 0; c < row->n_chunks; c++) {
        const float *x = row_chunk(row, c);
        float *group = group_max + (int64_t)c * ROW_LANES;
        vf m[4];
        float most = -INFINITY;

        for (int i = 0; i < 4; i++) /* four chains: a maximum has a latency of four */
            m[i] = vf_set(-INFINITY);
        for (int r = 0; r < ROWS; r += 4)
            for (int i = 0; i < 4; i++)
                m[i] = vf_max(vf_load(x + ROW_LANES * (r + i)), m[i]);
        vf_store(group, vf_max(vf_max(m[0], m[1]), vf_max(m[2], m[3])));
        for (int l = 0; l < ROW_LANES; l++)
            most = group[l] > most ? group[l] : most;
        chunk_max[c] = most;
    }
}

static double sum_lanes(vd s)
{
    double lane[ROW_LANES];

    vd_store(lane, s);
    for (int n = ROW_LANES / 2; n > 0; n /= 2)
        for (int i = 0; i < n; i++)
            lane[i] += lane[i + n];
    return lane[0];
}

static double total(const struct sampler_row *row, struct row_scale scale)
{
    vd sum = vd_zero();

    for (int32_t c = 0; c < row->n_chunks; c++) {
        const float *x = row_chunk(row, c);
        vf part = vf_set(0);

        for (int r = 0; r < ROWS; r++)
            part = vf_add(part, probability(vf_load(x + ROW_LANES * r), scale));
        sum = vd_add(sum, part);
    }
    return sum_lanes(sum);
}

static double before(const struct sampler_row *row, const float *chunk_max, struct row_scale scale,
                     struct row_rank rank, int32_t *n)
{
    vd sum = vd_zero();

    *n = 0;
    for (int32_t c = 0; c < row->n_chunks; c++) {
        const float *x = row_chunk(row, c);
        vf part = vf_set(0);

        if (!(chunk_max[c] >= rank.x)) /* skipping it adds what adding zeros would */
            continue;
        for (int r = 0; r < ROWS; r++) {
            vf v = vf_load(x + ROW_LANES * r);
            vu id = vu_iota((uint32_t)(c * ROW_CHUNK + ROW_LANES * r));
            vf p = vf_keep_before(probability(v, scale), v, rank.x, id, rank.id, n);

            part = vf_add(part, p);
        }
        sum = vd_add(sum, part);
    }
    return sum_lanes(sum);
}

/* noise_mix32, by lanes */
LANES vu mix32(vu w)
{
    w = vu_mul(vu_xor_shift(w, 16), NOISE_WORD_M1);
    w = vu_mul(vu_xor_shift(w, 15), NOISE_WORD_M2);
    return vu_xor_shift(w, 16);
}

static int32_t search(const struct row_search *q, int32_t c, uint32_t *groups)
{
    for (; c < q->n_chunks; c++) {
        vf most = vf_load(q->group_max + (int64_t)c * ROW_LANES);
        vf bound = vf_mul(probability(most, q->scale), vf_set(q->bound));
        vu word = mix32(vu_iota((uint32_t)(c * ROW_LANES) + q->keys[0]));

        word = mix32(vu_xor(word, q->keys[1]));
        *groups = vf_bits_ge_le(most, vf_set(q->least), vu_high24(word), bound);
        if (*groups != 0)
            break;
    }
    return c;
}

const struct sampler_rows LANES_NAME = {maxima, total, before, search};
