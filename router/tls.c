#include "router/tls.h"

#include <openssl/err.h>
#include <openssl/ssl.h>
#include <string.h>

static int choose_protocol(SSL *ssl, const unsigned char **out, unsigned char *out_len,
                           const unsigned char *in, unsigned in_len, void *arg)
{
    static const unsigned char ours[] = "\x08http/1.1";

    (void)ssl, (void)arg;
    return SSL_select_next_proto((unsigned char **)out, out_len, ours, sizeof(ours) - 1, in,
                                 in_len) == OPENSSL_NPN_NEGOTIATED
               ? SSL_TLSEXT_ERR_OK
               : SSL_TLSEXT_ERR_NOACK;
}

static enum status_code fail(struct status *st, const char *flag, const char *file)
{
    char why[256];

    ERR_error_string_n(ERR_get_error(), why, sizeof(why));
    return status_set(st, ST_INVALID, "--%s %s: %s", flag, file, why);
}

enum status_code tls_server_context(const char *certfile, const char *keyfile, SSL_CTX **out,
                                    struct status *st)
{
    SSL_CTX *ctx;

    *out = NULL;
    if (certfile == NULL && keyfile == NULL)
        return status_ok(st);
    if (certfile == NULL || keyfile == NULL)
        return status_set(st, ST_INVALID, "--ssl-certfile and --ssl-keyfile go together");
    ctx = SSL_CTX_new(TLS_server_method());
    if (ctx == NULL)
        return status_set(st, ST_EXHAUSTED, "no memory for TLS");
    SSL_CTX_set_min_proto_version(ctx, TLS1_2_VERSION);
    SSL_CTX_set_options(ctx, SSL_OP_NO_RENEGOTIATION | SSL_OP_NO_COMPRESSION |
                                 SSL_OP_IGNORE_UNEXPECTED_EOF); /* bodies have lengths */
    SSL_CTX_set_read_ahead(ctx, 1); /* a record's head and body by one system call */
    SSL_CTX_set_mode(ctx, SSL_MODE_RELEASE_BUFFERS); /* 34 KB less for an idle connection */
    SSL_CTX_set_alpn_select_cb(ctx, choose_protocol, NULL);
    if (SSL_CTX_use_certificate_chain_file(ctx, certfile) != 1)
        fail(st, "ssl-certfile", certfile);
    else if (SSL_CTX_use_PrivateKey_file(ctx, keyfile, SSL_FILETYPE_PEM) != 1 ||
             SSL_CTX_check_private_key(ctx) != 1)
        fail(st, "ssl-keyfile", keyfile);
    else
        status_ok(st);
    if (st->code != ST_OK) {
        SSL_CTX_free(ctx);
        return st->code;
    }
    *out = ctx;
    return ST_OK;
}

void tls_context_free(SSL_CTX *ctx)
{
    SSL_CTX_free(ctx);
}
