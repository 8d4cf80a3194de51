/*
 * tls: the context for clients that speak TLS.
 */
#ifndef BATON_ROUTER_TLS_H
#define BATON_ROUTER_TLS_H

#include <openssl/types.h>

#include "common/base/status.h"

/**
 * TLS 1.2 and 1.3, HTTP/1.1 by ALPN.
 * @param certfile, keyfile  PEM; both NULL: *out is NULL, plain HTTP
 * @return ST_OK; ST_INVALID naming the file
 */
enum status_code tls_server_context(const char *certfile, const char *keyfile, SSL_CTX **out,
                                    struct status *st);
void tls_context_free(SSL_CTX *ctx);

#endif
