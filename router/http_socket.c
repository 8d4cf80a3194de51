#include "router/http_socket.h"

#include <errno.h>
#include <limits.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "router/tls.h"

bool http_socket_open(struct http_socket *s, int fd, struct tls *tls)
{
    SSL *ssl = NULL;

    if (tls != NULL) {
        ssl = tls_session_new(tls);
        if (ssl == NULL || SSL_set_fd(ssl, fd) != 1) {
            SSL_free(ssl);
            return false;
        }
        SSL_set_accept_state(ssl);
        SSL_set_mode(ssl, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
    }
    *s = (struct http_socket){.fd = fd, .ssl = ssl};
    return true;
}

void http_socket_close(struct http_socket *s)
{
    SSL_free(s->ssl);
    close(s->fd);
    *s = (struct http_socket){.fd = -1};
}

static ssize_t plain_result(ssize_t n)
{
    if (n >= 0)
        return n;
    return errno == EAGAIN || errno == EINTR ? HTTP_SOCKET_AGAIN : HTTP_SOCKET_GONE;
}

static int at_most(size_t n)
{
    return n < INT_MAX ? (int)n : INT_MAX;
}

/* What an older call left would be taken for this one's. (Clearing costs more than looking.) */
static void forget_errors(void)
{
    if (ERR_peek_error() != 0)
        ERR_clear_error();
}

static ssize_t tls_read(struct http_socket *s, void *data, size_t cap)
{
    int n, e;

    forget_errors();
    n = SSL_read(s->ssl, data, at_most(cap));
    if (n > 0)
        return n;
    e = SSL_get_error(s->ssl, n);
    s->read_wants_write = e == SSL_ERROR_WANT_WRITE;
    if (e == SSL_ERROR_WANT_READ || e == SSL_ERROR_WANT_WRITE)
        return HTTP_SOCKET_AGAIN;
    return e == SSL_ERROR_ZERO_RETURN ? HTTP_SOCKET_END : HTTP_SOCKET_GONE;
}

ssize_t http_socket_read(struct http_socket *s, void *data, size_t cap)
{
    s->read_wants_write = false;
    return s->ssl != NULL ? tls_read(s, data, cap)
                          : plain_result(recv(s->fd, data, cap, MSG_DONTWAIT));
}

bool http_socket_has_more(const struct http_socket *s)
{
    return s->ssl != NULL && SSL_has_pending(s->ssl);
}

ssize_t http_socket_write(struct http_socket *s, const void *data, size_t n)
{
    int sent;

    if (s->ssl == NULL)
        return plain_result(send(s->fd, data, n, MSG_DONTWAIT | MSG_NOSIGNAL));
    forget_errors();
    sent = SSL_write(s->ssl, data, at_most(n));
    if (sent > 0)
        return sent;
    /* It never waits to read: the handshake is over and there is no other (renegotiation is off).
     */
    return SSL_get_error(s->ssl, sent) == SSL_ERROR_WANT_WRITE ? HTTP_SOCKET_AGAIN
                                                               : HTTP_SOCKET_GONE;
}

bool http_socket_end(struct http_socket *s)
{
    if (s->ssl != NULL && SSL_is_init_finished(s->ssl)) {
        forget_errors();
        (void)SSL_shutdown(s->ssl);
    }
    return shutdown(s->fd, SHUT_WR) == 0;
}
