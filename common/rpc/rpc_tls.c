/*
 * rpc_tls: credentials of channels and servers.
 */
#include <openssl/crypto.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/file.h"
#include "common/rpc/rpc_internal.h"

enum { PEM_BYTES_MAX = 1 << 20 };

static enum status_code read_pem(const char *path, char **out, struct status *st)
{
    struct buf text = {0};

    if (file_read(path, PEM_BYTES_MAX, &text, st) == ST_OK) {
        *out = strdup(buf_cstr(&text));
        if (*out == NULL)
            status_set(st, ST_EXHAUSTED, "no memory for %s", path);
        else if (strstr(*out, "-----BEGIN") == NULL)
            status_set(st, ST_INVALID, "%s: no PEM text", path);
    }
    if (text.data != NULL)
        OPENSSL_cleanse(text.data, text.len);
    buf_deinit(&text);
    return st->code;
}

enum status_code rpc_use_tls(struct rpc *r, const char *ca_file, const char *cert_file,
                             const char *key_file, struct status *st)
{
    if (ca_file == NULL && cert_file == NULL && key_file == NULL)
        return status_ok(st);
    if (ca_file == NULL || cert_file == NULL || key_file == NULL)
        return status_set(st, ST_INVALID,
                          "TLS between workers and router needs a CA, a certificate and its key");
    if (read_pem(ca_file, &r->tls_ca, st) != ST_OK ||
        read_pem(cert_file, &r->tls_cert, st) != ST_OK ||
        read_pem(key_file, &r->tls_key, st) != ST_OK)
        return status_wrap(st, "TLS");
    return ST_OK;
}

void rpc_tls_deinit(struct rpc *r)
{
    if (r->tls_key != NULL)
        OPENSSL_cleanse(r->tls_key, strlen(r->tls_key));
    free(r->tls_ca);
    free(r->tls_cert);
    free(r->tls_key);
}

grpc_channel_credentials *rpc_channel_credentials(const struct rpc *r)
{
    grpc_ssl_pem_key_cert_pair pair = {r->tls_key, r->tls_cert};

    if (r->tls_ca == NULL)
        return grpc_insecure_credentials_create();
    return grpc_ssl_credentials_create(r->tls_ca, &pair, NULL, NULL);
}

grpc_server_credentials *rpc_server_credentials(const struct rpc *r)
{
    grpc_ssl_pem_key_cert_pair pair = {r->tls_key, r->tls_cert};

    if (r->tls_ca == NULL)
        return grpc_insecure_server_credentials_create();
    return grpc_ssl_server_credentials_create_ex(
        r->tls_ca, &pair, 1, GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY, NULL);
}
