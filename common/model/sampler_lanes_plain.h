/* sampler_lanes in plain C: the spec of the others. */

typedef struct {
    float lane[16];
} vf;
typedef struct {
    uint32_t lane[16];
} vu;
typedef struct {
    double lane[16];
} vd;

#define EACH_LANE(type, value)                                                                     \
    do {                                                                                           \
        type r_;                                                                                   \
        for (int i = 0; i < 16; i++)                                                               \
            r_.lane[i] = value;                                                                    \
        return r_;                                                                                 \
    } while (0)

LANES vf vf_load(const float *p)
{
    EACH_LANE(vf, p[i]);
}

LANES void vf_store(float *p, vf a)
{
    memcpy(p, a.lane, sizeof(a.lane));
}

LANES vf vf_set(float x)
{
    EACH_LANE(vf, x);
}

LANES vf vf_add(vf a, vf b)
{
    EACH_LANE(vf, a.lane[i] + b.lane[i]);
}

LANES vf vf_sub(vf a, vf b)
{
    EACH_LANE(vf, a.lane[i] - b.lane[i]);
}

LANES vf vf_mul(vf a, vf b)
{
    EACH_LANE(vf, a.lane[i] * b.lane[i]);
}

LANES vf vf_max(vf a, vf b)
{
    EACH_LANE(vf, a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i]);
}

/* The bits of p plus those of n moved up by 23: p * 2^n for a small integer n, in n's low bits. */
LANES vf vf_scale_bits(vf p, vf n)
{
    vu a, b;
    vf r;

    memcpy(&a, &p, sizeof(a));
    memcpy(&b, &n, sizeof(b));
    for (int i = 0; i < 16; i++)
        a.lane[i] += b.lane[i] << 23;
    memcpy(&r, &a, sizeof(r));
    return r;
}

LANES vu vu_iota(uint32_t first)
{
    EACH_LANE(vu, first + (uint32_t)i);
}

LANES vu vu_xor_shift(vu a, int bits)
{
    EACH_LANE(vu, a.lane[i] ^ a.lane[i] >> bits);
}

LANES vu vu_xor(vu a, uint32_t b)
{
    EACH_LANE(vu, a.lane[i] ^ b);
}

LANES vu vu_mul(vu a, uint32_t b)
{
    EACH_LANE(vu, a.lane[i] * b);
}

/* (float)(a >> 8): exact */
LANES vf vu_high24(vu a)
{
    EACH_LANE(vf, (float)(int32_t)(a.lane[i] >> 8));
}

/* Lanes where a >= b and c <= d, as bits. */
LANES uint32_t vf_bits_ge_le(vf a, vf b, vf c, vf d)
{
    uint32_t bits = 0;

    for (int i = 0; i < 16; i++)
        bits |= (uint32_t)(a.lane[i] >= b.lane[i] && c.lane[i] <= d.lane[i]) << i;
    return bits;
}

/* p where x > rank_x, or equal and id < rank_id; elsewhere 0. Adds how many to *n. */
LANES vf vf_keep_before(vf p, vf x, float rank_x, vu id, int32_t rank_id, int32_t *n)
{
    vf out;

    for (int i = 0; i < 16; i++) {
        int keep = (x.lane[i] > rank_x) | ((x.lane[i] == rank_x) & ((int32_t)id.lane[i] < rank_id));

        *n += keep;
        out.lane[i] = keep ? p.lane[i] : 0;
    }
    return out;
}

LANES vd vd_zero(void)
{
    EACH_LANE(vd, 0);
}

LANES vd vd_add(vd s, vf a)
{
    EACH_LANE(vd, s.lane[i] + (double)a.lane[i]);
}

LANES void vd_store(double *p, vd s)
{
    memcpy(p, s.lane, sizeof(s.lane));
}

#undef EACH_LANE
