/*
 * http_socket: one client's socket, plain or TLS; never blocks.
 *
 * Threads   the loop's.
 * Lifetime  zero-initialise, http_socket_open(), http_socket_close().
 */
#ifndef BATON_ROUTER_HTTP_SOCKET_H
#define BATON_ROUTER_HTTP_SOCKET_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

struct ssl_st;
struct tls;

struct http_socket {
    int fd;
    struct ssl_st *ssl;    /* NULL: plain */
    bool read_wants_write; /* TLS: reading goes on when the socket can be written (a handshake) */
};

enum {
    HTTP_SOCKET_END = 0,    /* the client sends nothing more */
    HTTP_SOCKET_GONE = -1,  /* the connection is lost */
    HTTP_SOCKET_AGAIN = -2, /* not now */
};

/** Takes fd, on success. @param tls  NULL: plain. @return false without memory */
bool http_socket_open(struct http_socket *s, int fd, struct tls *tls);
void http_socket_close(struct http_socket *s);

/** @return bytes, or one of the codes above; TLS makes its handshake here */
ssize_t http_socket_read(struct http_socket *s, void *data, size_t cap);

/** After a read that gave bytes: whether more may be here that the kernel does not know of. No
 * event will tell of them. */
bool http_socket_has_more(const struct http_socket *s);

/** Part of it may be taken; data may move between two tries. @param n  > 0. @return as
 * http_socket_read(), never HTTP_SOCKET_END */
ssize_t http_socket_write(struct http_socket *s, const void *data, size_t n);

/** Says that nothing more will be sent. @return false when the connection is lost */
bool http_socket_end(struct http_socket *s);

#endif
