#include "common/transfer/descriptor.h"

#include <endian.h>
#include <string.h>

#include "common/base/crc32c.h"

static const char magic[8] = {'B', 'A', 'T', 'O', 'N', 'K', 'V', 'D'};

enum { PUTS = 1 << 8 }; /* in the half-word of the number of addresses */

enum { AT_LENGTH = 12, AT_CRC = 16, AT_BODY = 20 };

static void put_u16(struct buf *b, uint16_t v)
{
    v = htole16(v);
    buf_append(b, &v, sizeof(v));
}

static void put_u32(struct buf *b, uint32_t v)
{
    v = htole32(v);
    buf_append(b, &v, sizeof(v));
}

static void put_u64(struct buf *b, uint64_t v)
{
    v = htole64(v);
    buf_append(b, &v, sizeof(v));
}

static void patch_u32(struct buf *b, size_t at, uint32_t v)
{
    v = htole32(v);
    memcpy(b->data + at, &v, sizeof(v));
}

void descriptor_write(const struct descriptor *d, struct buf *out)
{
    size_t start = out->len;
    uint32_t n_slabs = 0;

    for (int i = 0; i < DESCRIPTOR_SLABS; i++)
        n_slabs += d->slabs[i].bytes > 0;
    buf_append(out, magic, sizeof(magic));
    put_u32(out, DESCRIPTOR_VERSION);
    put_u32(out, 0); /* length and checksum: patched below */
    put_u32(out, 0);
    put_u32(out, n_slabs);
    put_u64(out, d->incarnation);
    put_u32(out, d->address_len);
    put_u16(out, d->tcp.port);
    put_u16(out, (uint16_t)(d->tcp.n_addresses | (d->tcp.puts ? PUTS : 0)));
    put_u64(out, d->tcp.host);
    buf_append(out, d->tcp.token, sizeof(d->tcp.token));
    buf_append(out, d->address, d->address_len);
    for (uint32_t i = 0; i < d->tcp.n_addresses; i++) {
        put_u16(out, d->tcp.addresses[i].family);
        buf_append(out, d->tcp.addresses[i].bytes, sizeof(d->tcp.addresses[i].bytes));
    }
    for (uint32_t i = 0; i < DESCRIPTOR_SLABS; i++) {
        const struct descriptor_slab *s = &d->slabs[i];

        if (s->bytes == 0)
            continue;
        put_u32(out, i);
        put_u32(out, s->rkey_len);
        put_u64(out, s->base);
        put_u64(out, s->bytes);
        buf_append(out, s->rkey, s->rkey_len);
    }
    patch_u32(out, start + AT_LENGTH, (uint32_t)(out->len - start));
    patch_u32(out, start + AT_CRC,
              crc32c(0, out->data + start + AT_BODY, out->len - start - AT_BODY));
}

/* What is still unread. */
struct reader {
    const uint8_t *at;
    size_t left;
};

static bool take(struct reader *r, size_t n, const void **out)
{
    if (r->left < n)
        return false;
    *out = r->at;
    r->at += n;
    r->left -= n;
    return true;
}

static bool take_u16(struct reader *r, uint16_t *v)
{
    const void *p;

    if (!take(r, sizeof(*v), &p))
        return false;
    memcpy(v, p, sizeof(*v));
    *v = le16toh(*v);
    return true;
}

static bool take_u32(struct reader *r, uint32_t *v)
{
    const void *p;

    if (!take(r, sizeof(*v), &p))
        return false;
    memcpy(v, p, sizeof(*v));
    *v = le32toh(*v);
    return true;
}

static bool take_u64(struct reader *r, uint64_t *v)
{
    const void *p;

    if (!take(r, sizeof(*v), &p))
        return false;
    memcpy(v, p, sizeof(*v));
    *v = le64toh(*v);
    return true;
}

static enum status_code read_head(struct reader *r, size_t len, uint32_t *n_slabs,
                                  uint64_t *incarnation, struct status *st)
{
    uint32_t version, length, crc, real;
    const void *m;

    if (!take(r, sizeof(magic), &m) || memcmp(m, magic, sizeof(magic)) != 0)
        return status_set(st, ST_INVALID,
                          "transfer descriptor of %zu bytes: it does not begin with the magic "
                          "\"BATONKVD\": these are other bytes",
                          len);
    if (!take_u32(r, &version) || !take_u32(r, &length) || !take_u32(r, &crc))
        return status_set(st, ST_INVALID, "transfer descriptor: cut after %zu bytes", len);
    if (version != DESCRIPTOR_VERSION)
        return status_set(st, ST_INVALID,
                          "transfer descriptor: version %u, this worker reads %d: run the same "
                          "release on both sides",
                          version, DESCRIPTOR_VERSION);
    if (length != len)
        return status_set(st, ST_INVALID, "transfer descriptor: says %u bytes, %zu came", length,
                          len);
    real = crc32c(0, r->at, r->left);
    if (real != crc)
        return status_set(st, ST_INVALID,
                          "transfer descriptor: checksum %08x, the bytes give %08x: damaged on "
                          "the way",
                          crc, real);
    if (!take_u32(r, n_slabs) || !take_u64(r, incarnation) || *n_slabs > DESCRIPTOR_SLABS ||
        *incarnation == 0)
        return status_set(st, ST_INVALID,
                          "transfer descriptor: expected 0 to %d slabs and a non-zero incarnation",
                          DESCRIPTOR_SLABS);
    return status_ok(st);
}

static bool take_bytes(struct reader *r, size_t n, uint8_t *out)
{
    const void *p;

    if (!take(r, n, &p))
        return false;
    memcpy(out, p, n);
    return true;
}

/* The worker address and the socket lane's offer. */
static enum status_code read_addresses(struct reader *r, struct descriptor *d, struct status *st)
{
    struct tcp_offer *o = &d->tcp;
    uint16_t n = 0;

    if (!take_u32(r, &d->address_len) || !take_u16(r, &o->port) || !take_u16(r, &n) ||
        !take_u64(r, &o->host) || !take_bytes(r, sizeof(o->token), o->token) ||
        d->address_len == 0 || d->address_len > DESCRIPTOR_ADDRESS_MAX ||
        !take(r, d->address_len, &d->address))
        return status_set(st, ST_INVALID,
                          "transfer descriptor: worker address is missing, cut or too long");
    o->puts = n & PUTS;
    n &= (uint16_t)~PUTS;
    if (n > TCP_ADDRESSES_MAX)
        return status_set(st, ST_INVALID, "transfer descriptor: %u socket addresses, at most %d", n,
                          TCP_ADDRESSES_MAX);
    o->n_addresses = n;
    for (uint32_t i = 0; i < n; i++) {
        struct tcp_address *a = &o->addresses[i];

        if (!take_u16(r, &a->family) || !take_bytes(r, sizeof(a->bytes), a->bytes) ||
            (a->family != 4 && a->family != 6))
            return status_set(st, ST_INVALID,
                              "transfer descriptor: socket address %u is cut or of no family", i);
    }
    return status_ok(st);
}

static enum status_code read_slab(struct reader *r, struct descriptor *d, struct status *st)
{
    uint32_t index, rkey_len;
    uint64_t base, bytes;
    const void *rkey;

    if (!take_u32(r, &index) || !take_u32(r, &rkey_len) || !take_u64(r, &base) ||
        !take_u64(r, &bytes))
        return status_set(st, ST_INVALID, "transfer descriptor: cut inside a slab");
    if (index >= DESCRIPTOR_SLABS || d->slabs[index].bytes != 0)
        return status_set(st, ST_INVALID, "transfer descriptor: slab %u comes twice or is not < %d",
                          index, DESCRIPTOR_SLABS);
    if (bytes == 0 || base == 0 || bytes > UINT64_MAX - base)
        return status_set(st, ST_INVALID,
                          "transfer descriptor: slab %u: base %#llx, %llu bytes is no memory",
                          index, (unsigned long long)base, (unsigned long long)bytes);
    if (rkey_len == 0 || rkey_len > DESCRIPTOR_RKEY_MAX || !take(r, rkey_len, &rkey))
        return status_set(st, ST_INVALID,
                          "transfer descriptor: slab %u: remote key of %u bytes, 1 to %d expected "
                          "and %zu bytes are left",
                          index, rkey_len, DESCRIPTOR_RKEY_MAX, r->left);
    d->slabs[index] = (struct descriptor_slab){base, bytes, rkey, rkey_len};
    return status_ok(st);
}

enum status_code descriptor_read(const void *data, size_t len, struct descriptor *out,
                                 struct status *st)
{
    struct reader r = {data, len};
    struct descriptor d = {0};
    uint32_t n_slabs = 0;

    if (read_head(&r, len, &n_slabs, &d.incarnation, st) != ST_OK)
        return st->code;
    if (read_addresses(&r, &d, st) != ST_OK)
        return st->code;
    for (uint32_t i = 0; i < n_slabs; i++)
        if (read_slab(&r, &d, st) != ST_OK)
            return st->code;
    if (r.left != 0)
        return status_set(st, ST_INVALID, "transfer descriptor: %zu bytes too many at its end",
                          r.left);
    *out = d;
    return status_ok(st);
}
