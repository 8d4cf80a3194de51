/*
 * tcp_address: where a worker's socket lane can be reached, and which of a peer's addresses to try.
 *
 * Threads   no state.
 */
#ifndef BATON_COMMON_TRANSFER_TCP_ADDRESS_H
#define BATON_COMMON_TRANSFER_TCP_ADDRESS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>

enum { TCP_ADDRESSES_MAX = 16, TCP_TOKEN_BYTES = 16 };

struct tcp_address {
    uint16_t family;   /* 4 or 6; TCP_FAMILY_LOCAL never travels */
    uint8_t bytes[16]; /* network order; the first 4 for family 4 */
};

/* A socket of this host and network namespace, of a process named by its incarnation. */
enum { TCP_FAMILY_LOCAL = 1 };

/* What a sender needs to know of a receiver's listening socket. */
struct tcp_offer {
    uint16_t port;                  /* 0: nothing listens but within the host */
    bool puts;                      /* the socket lane is open, not only for lifelines */
    uint8_t token[TCP_TOKEN_BYTES]; /* whoever shows it may write */
    uint64_t host;                  /* tcp_host_id() of the receiver */
    uint32_t n_addresses;
    struct tcp_address addresses[TCP_ADDRESSES_MAX];
};

/** Names this machine and network namespace: equal only where loopback addresses mean the same. */
uint64_t tcp_host_id(void);

/**
 * Addresses of the interfaces that are up, loopback last, link-local ones left out.
 * @param devices  comma-separated interface names to keep; NULL: all
 * @param out      [TCP_ADDRESSES_MAX]
 * @return how many
 */
uint32_t tcp_addresses_local(const char *devices, struct tcp_address *out);

/**
 * The addresses of an offer in the order to try them: loopback only on the same host and then
 * first, those in a subnet of ours before others.
 * @param out  [TCP_ADDRESSES_MAX]
 * @return how many; 0 when none can lead there
 */
uint32_t tcp_candidates(const struct tcp_offer *offer, uint64_t own_host, struct tcp_address *out);

/** Is name one of the comma-separated list ("mlx5_0:1" counts as "mlx5_0" too)? NULL lists all. */
bool tcp_device_listed(const char *devices, const char *name);

/** Where that process listens within its host. */
struct tcp_address tcp_address_local(uint64_t incarnation);

/** Has the kernel probe a silent connection. */
void tcp_keep_alive(int fd);

/** Has the kernel give a connection up when nothing is acknowledged for TCP_BROKEN_MS. */
void tcp_break_soon(int fd);

enum { TCP_BROKEN_MS = 1200 };

/** Fills a socket address; returns its length. */
socklen_t tcp_sockaddr(const struct tcp_address *a, uint16_t port, struct sockaddr_storage *out);

/** "10.0.0.7", "fd00::2" or "this host". */
void tcp_address_text(const struct tcp_address *a, char *buf, size_t n);

/** The interface that a connected socket's local address belongs to; "?" when it cannot be told. */
void tcp_socket_device(int fd, char *buf, size_t n);

#endif
