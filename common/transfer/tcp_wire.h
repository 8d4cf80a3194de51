/*
 * tcp_wire: what goes over a socket lane. All numbers little endian.
 *
 * The sender opens with a hello, the receiver answers with a welcome:
 *
 *   hello, 64 bytes                              welcome, 32 bytes
 *    0   8  magic "BATONPUT"                      0  8  magic "BATONWEL"
 *    8   4  version                               8  4  version
 *   12   4  enum tcp_hello_kind                  12  4  enum tcp_welcome
 *   16  16  token of the receiver's descriptor   16  8  incarnation of the receiver
 *   32   8  incarnation of the sender            24  8  zero
 *   40  24  zero
 *
 * A lifeline (lifeline.h) goes on with single bytes: beats, either way; the receiver may ask the
 * sender to stop; the sender says goodbye and closes. Puts go on with frames, each a header, its
 * entries and the bytes of the entries in order; the receiver reads the bytes straight into its
 * slabs. FLUSH and BYE are answered, in order, with an ack: what came before lies in memory then.
 * After a BYE the sender sends nothing more.
 *
 *   header, 32 bytes                             entry, 24 bytes      ack, 16 bytes
 *    0  4  enum tcp_frame                         0  4  slab           0  4  enum tcp_frame
 *    4  4  n_entries, 1..TCP_ENTRIES_MAX; PUT     4  4  zero           4  4  zero
 *    8  8  bytes of all entries; PUT              8  8  offset         8  8  sequence number
 *   16  8  sequence number; FLUSH, BYE           16  8  bytes
 *   24  4  CRC32C of header (this field zero) and entries
 *   28  4  zero
 *
 * TCP's own checksum is weak: a header that was damaged on the way would put bytes into the wrong
 * place, so it has a CRC of its own. The payload is covered by the checksums of its groups.
 */
#ifndef BATON_COMMON_TRANSFER_TCP_WIRE_H
#define BATON_COMMON_TRANSFER_TCP_WIRE_H

#include <endian.h>
#include <stdint.h>
#include <string.h>

#include "common/base/crc32c.h"
#include "common/transfer/tcp_address.h"

enum {
    TCP_VERSION = 2,
    TCP_ENTRIES_MAX = 512,
    TCP_FRAME_BYTES_MAX = 1 << 26, /* sanity bound of a receiver; senders stay far below */
};

#define TCP_HELLO_MAGIC "BATONPUT"
#define TCP_WELCOME_MAGIC "BATONWEL"

enum tcp_frame { TCP_PUT = 1, TCP_FLUSH = 2, TCP_BYE = 3 };
enum tcp_welcome { TCP_COME_IN, TCP_OTHER_VERSION, TCP_OTHER_TOKEN, TCP_NO_PUTS };

/* A lifeline says which lane it stands beside: its end proves different things. */
enum tcp_hello_kind { TCP_HELLO_PUTS, TCP_HELLO_LIFELINE, TCP_HELLO_LIFELINE_UCX };

enum { LIFELINE_BEAT = 'b', LIFELINE_BYE = 'x', LIFELINE_STOP = 's' };

enum { LIFELINE_BEAT_US = 300000 }; /* with TCP_BROKEN_MS, a silent network is noticed in 2 s */

struct tcp_hello {
    char magic[8];
    uint32_t version;
    uint32_t kind;
    uint8_t token[TCP_TOKEN_BYTES];
    uint64_t incarnation;
    uint8_t zeros[24];
};

struct tcp_greeting {
    char magic[8];
    uint32_t version;
    uint32_t code;
    uint64_t incarnation;
    uint64_t zero;
};

struct tcp_header {
    uint32_t type;
    uint32_t n_entries;
    uint64_t bytes;
    uint64_t seq;
    uint32_t crc;
    uint32_t zero;
};

struct tcp_entry {
    uint32_t slab;
    uint32_t zero;
    uint64_t offset;
    uint64_t bytes;
};

struct tcp_ack {
    uint32_t type;
    uint32_t zero;
    uint64_t seq;
};

_Static_assert(sizeof(struct tcp_hello) == 64 && sizeof(struct tcp_greeting) == 32 &&
                   sizeof(struct tcp_header) == 32 && sizeof(struct tcp_entry) == 24 &&
                   sizeof(struct tcp_ack) == 16,
               "the structs are the wire format");
_Static_assert(__BYTE_ORDER == __LITTLE_ENDIAN, "fields are used as they come from the wire");

static inline uint32_t tcp_frame_crc(const struct tcp_header *h, const struct tcp_entry *entries)
{
    struct tcp_header bare = *h;

    bare.crc = 0;
    return crc32c(crc32c(0, &bare, sizeof(bare)), entries, h->n_entries * sizeof(*entries));
}

#endif
