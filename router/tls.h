/*
 * tls: the certificate for clients that speak TLS. It is read again when one of its files changes;
 * connections that are open keep the one they began with.
 *
 * Threads   any; a lock guards all.
 */
#ifndef BATON_ROUTER_TLS_H
#define BATON_ROUTER_TLS_H

#include <stdint.h>

#include "common/base/status.h"

struct tls;
struct ssl_st; /* OpenSSL's SSL */

/**
 * TLS 1.2 and 1.3, HTTP/1.1 by ALPN.
 * @param certfile, keyfile  PEM, borrowed; both NULL: *out is NULL, plain HTTP
 * @return ST_OK; ST_INVALID naming the file
 */
enum status_code tls_new(const char *certfile, const char *keyfile, struct tls **out,
                         struct status *st);
void tls_free(struct tls *t);

/** The server's side of a new connection, which owns it. NULL: no memory. */
struct ssl_st *tls_session_new(struct tls *t);

/** Looks whether the files have changed, at most every half second; files that do not fit together
 * (one may be replaced before the other) change nothing and are told in the log once. NULL is fine.
 */
void tls_refresh(struct tls *t, uint64_t now_us);

#endif
