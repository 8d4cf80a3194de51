/*
 * descriptor: the bytes by which one worker tells another where its slabs are.
 *
 * They come from another machine, so they are read as hostile input: nothing is trusted but the
 * bytes that are there. The checksum is against damage (UCX may crash on a garbled address), not
 * against forgery: the bytes travel over an authenticated session.
 *
 *   offset  size  little endian
 *        0     8  magic "BATONKVD"
 *        8     4  version (3)
 *       12     4  length of everything, these fields included
 *       16     4  CRC32C of the bytes from 20 to the end
 *       20     4  n_slabs, 0..DESCRIPTOR_SLABS
 *       24     8  incarnation: random per process start, never 0
 *       32     4  address_len, 1..DESCRIPTOR_ADDRESS_MAX
 *       36     2  port of the socket lane and of lifelines, 0: none
 *       38     1  n_addresses, 0..TCP_ADDRESSES_MAX
 *       39     1  1: the socket lane is open; 0: it is not
 *       40     8  host: which machine and network namespace
 *       48    16  token of the port
 *       64     -  the UCX worker address
 *        -        n_addresses times: family u16 (4 or 6), 16 bytes
 *        -        n_slabs times: index u32 (each once), rkey_len u32 (1..DESCRIPTOR_RKEY_MAX),
 *                 base u64, bytes u64 (base + bytes does not wrap), the packed remote key
 *
 * Threads   no state.
 */
#ifndef BATON_COMMON_TRANSFER_DESCRIPTOR_H
#define BATON_COMMON_TRANSFER_DESCRIPTOR_H

#include <stddef.h>
#include <stdint.h>

#include "common/base/buf.h"
#include "common/base/status.h"
#include "common/transfer/tcp_address.h"
#include "common/transfer/transfer.h"

enum {
    DESCRIPTOR_VERSION = 3,
    DESCRIPTOR_ADDRESS_MAX = 1 << 16,
    DESCRIPTOR_RKEY_MAX = 1 << 16,
    DESCRIPTOR_SLABS = TRANSFER_SLABS_MAX + 1, /* the owner's, and the transfer's own for probes */
};

/* A slab at its owner; bytes is 0 where there is none. */
struct descriptor_slab {
    uint64_t base;    /* address in the owner's process */
    uint64_t bytes;   /* length */
    const void *rkey; /* borrowed */
    uint32_t rkey_len;
};

struct descriptor {
    uint64_t incarnation;
    const void *address; /* borrowed */
    uint32_t address_len;
    struct tcp_offer tcp;
    struct descriptor_slab slabs[DESCRIPTOR_SLABS]; /* by index */
};

/** Appends d's bytes to out. */
void descriptor_write(const struct descriptor *d, struct buf *out);

/**
 * Reads them back.
 * @param d  out, borrows from data; written only on success
 * @return ST_OK; ST_INVALID with what is wrong and where
 */
enum status_code descriptor_read(const void *data, size_t len, struct descriptor *d,
                                 struct status *st);

#endif
