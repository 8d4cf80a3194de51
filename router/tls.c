#include "router/tls.h"

#include <openssl/err.h>
#include <openssl/ssl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/file.h"
#include "common/base/log.h"

enum { REFRESH_US = 500000 };

struct tls {
    const char *certfile, *keyfile;
    pthread_mutex_t lock; /* guards all below */
    SSL_CTX *ctx;
    struct file_stamp seen[2]; /* of certificate and key, when they were last read */
    uint64_t looked_us;
};

static void take_stamps(const struct tls *t, struct file_stamp out[2])
{
    (void)file_stamp_take(t->certfile, &out[0]);
    (void)file_stamp_take(t->keyfile, &out[1]);
}

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

static enum status_code context_new(const struct tls *t, SSL_CTX **out, struct status *st)
{
    SSL_CTX *ctx = SSL_CTX_new(TLS_server_method());

    if (ctx == NULL)
        return status_set(st, ST_EXHAUSTED, "no memory for TLS");
    SSL_CTX_set_min_proto_version(ctx, TLS1_2_VERSION);
    SSL_CTX_set_options(ctx, SSL_OP_NO_RENEGOTIATION | SSL_OP_NO_COMPRESSION |
                                 SSL_OP_IGNORE_UNEXPECTED_EOF); /* bodies have lengths */
    SSL_CTX_set_read_ahead(ctx, 1); /* a record's head and body by one system call */
    SSL_CTX_set_mode(ctx, SSL_MODE_RELEASE_BUFFERS); /* 34 KB less for an idle connection */
    SSL_CTX_set_alpn_select_cb(ctx, choose_protocol, NULL);
    ERR_clear_error();
    if (SSL_CTX_use_certificate_chain_file(ctx, t->certfile) != 1)
        fail(st, "ssl-certfile", t->certfile);
    else if (SSL_CTX_use_PrivateKey_file(ctx, t->keyfile, SSL_FILETYPE_PEM) != 1 ||
             SSL_CTX_check_private_key(ctx) != 1)
        fail(st, "ssl-keyfile", t->keyfile);
    else
        status_ok(st);
    ERR_clear_error();
    if (st->code != ST_OK) {
        SSL_CTX_free(ctx);
        return st->code;
    }
    *out = ctx;
    return ST_OK;
}

enum status_code tls_new(const char *certfile, const char *keyfile, struct tls **out,
                         struct status *st)
{
    struct tls *t;

    *out = NULL;
    if (certfile == NULL && keyfile == NULL)
        return status_ok(st);
    if (certfile == NULL || keyfile == NULL)
        return status_set(st, ST_INVALID, "--ssl-certfile and --ssl-keyfile go together");
    t = calloc(1, sizeof(*t));
    if (t == NULL)
        return status_set(st, ST_EXHAUSTED, "no memory for TLS");
    pthread_mutex_init(&t->lock, NULL);
    t->certfile = certfile;
    t->keyfile = keyfile;
    take_stamps(t, t->seen);
    if (context_new(t, &t->ctx, st) != ST_OK) {
        tls_free(t);
        return st->code;
    }
    *out = t;
    return ST_OK;
}

void tls_free(struct tls *t)
{
    if (t == NULL)
        return;
    SSL_CTX_free(t->ctx);
    pthread_mutex_destroy(&t->lock);
    free(t);
}

SSL *tls_session_new(struct tls *t)
{
    SSL *ssl;

    pthread_mutex_lock(&t->lock);
    ssl = SSL_new(t->ctx); /* it keeps the context, whatever comes */
    pthread_mutex_unlock(&t->lock);
    return ssl;
}

void tls_refresh(struct tls *t, uint64_t now_us)
{
    struct file_stamp now[2];
    struct status st;
    SSL_CTX *ctx;

    if (t == NULL)
        return;
    pthread_mutex_lock(&t->lock);
    if (now_us - t->looked_us >= REFRESH_US) {
        t->looked_us = now_us;
        take_stamps(t, now);
        if (!file_stamp_same(&now[0], &t->seen[0]) || !file_stamp_same(&now[1], &t->seen[1])) {
            memcpy(t->seen, now, sizeof(now));
            if (context_new(t, &ctx, &st) == ST_OK) {
                SSL_CTX_free(t->ctx);
                t->ctx = ctx;
                log_info("%s: read again, for new connections", t->certfile);
            } else {
                log_error("%s: the certificate stays as it is", st.msg);
            }
        }
    }
    pthread_mutex_unlock(&t->lock);
}
