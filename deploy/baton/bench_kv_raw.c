#include "deploy/baton/bench_kv.h"

#include <limits.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>
#if defined(__x86_64__)
#include <emmintrin.h>
#endif

#include "common/base/clock.h"

static void copy_past_caches(uint8_t *to, const uint8_t *from, uint64_t n)
{
#if defined(__x86_64__)
    uint64_t head = -(uintptr_t)to & 15;

    if (head > n)
        head = n;
    memcpy(to, from, head);
    to += head;
    from += head;
    n -= head;
    for (; n >= 64; to += 64, from += 64, n -= 64)
        for (int i = 0; i < 64; i += 16)
            _mm_stream_si128((void *)(to + i), _mm_loadu_si128((const void *)(from + i)));
#endif
    memcpy(to, from, n);
}

double kv_raw_copy(const struct kv_set *set, uint8_t *to, const uint8_t *from, bool past_caches)
{
    uint64_t start = clock_now_ns();

    for (size_t i = 0; i < set->n_pieces; i++) {
        const struct transfer_piece *p = &set->pieces[i];

        if (past_caches)
            copy_past_caches(to + p->remote_off, from + p->local_off, p->bytes);
        else
            memcpy(to + p->remote_off, from + p->local_off, p->bytes);
    }
#if defined(__x86_64__)
    _mm_sfence();
#endif
    return (double)(clock_now_ns() - start) * 1e-9;
}

/* Moves all pieces through fd with as few system calls as there can be. */
static bool move_all(int fd, const struct kv_set *set, uint8_t *slab, bool receive)
{
    struct iovec iov[IOV_MAX];
    size_t at = 0;
    uint64_t at_bytes = 0;

    while (at < set->n_pieces) {
        int n = 0;
        ssize_t moved;

        for (size_t i = at; i < set->n_pieces && n < IOV_MAX; i++, n++) {
            const struct transfer_piece *p = &set->pieces[i];
            uint64_t done = i == at ? at_bytes : 0;

            iov[n].iov_base = slab + (receive ? p->remote_off : p->local_off) + done;
            iov[n].iov_len = p->bytes - done;
        }
        moved = receive ? readv(fd, iov, n) : writev(fd, iov, n);
        if (moved <= 0)
            return false;
        for (at_bytes += (uint64_t)moved; at < set->n_pieces && at_bytes >= set->pieces[at].bytes;
             at++)
            at_bytes -= set->pieces[at].bytes;
    }
    return true;
}

double kv_raw_send(int fd, const struct kv_set *set, const uint8_t *slab)
{
    uint64_t start = clock_now_ns();
    char byte;

    if (!move_all(fd, set, (uint8_t *)slab, false) || recv(fd, &byte, 1, 0) != 1)
        return -1;
    return (double)(clock_now_ns() - start) * 1e-9;
}

bool kv_raw_receive(int fd, const struct kv_set *set, uint8_t *slab)
{
    return move_all(fd, set, slab, true) && send(fd, "k", 1, MSG_NOSIGNAL) == 1;
}

int kv_raw_listen(uint16_t *port)
{
    struct sockaddr_in6 a = {.sin6_family = AF_INET6};
    struct sockaddr_in a4 = {.sin_family = AF_INET};
    struct sockaddr *sa = (struct sockaddr *)&a;
    socklen_t len = sizeof(a);
    const int zero = 0;
    int fd = socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0);

    if (fd >= 0) {
        setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &zero, sizeof(zero));
    } else {
        fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        sa = (struct sockaddr *)&a4;
        len = sizeof(a4);
    }
    if (fd >= 0 &&
        (bind(fd, sa, len) != 0 || listen(fd, 1) != 0 || getsockname(fd, sa, &len) != 0)) {
        close(fd);
        return -1;
    }
    *port = ntohs(sa->sa_family == AF_INET6 ? a.sin6_port : a4.sin_port);
    return fd;
}
