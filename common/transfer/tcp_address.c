#include "common/transfer/tcp_address.h"

#include <arpa/inet.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <string.h>
#include <stddef.h>
#include <sys/stat.h>
#include <sys/un.h>

#include "common/base/hash.h"

static bool from_sockaddr(const struct sockaddr *sa, struct tcp_address *out)
{
    memset(out, 0, sizeof(*out));
    if (sa == NULL)
        return false;
    if (sa->sa_family == AF_INET) {
        out->family = 4;
        memcpy(out->bytes, &((const struct sockaddr_in *)(const void *)sa)->sin_addr, 4);
        return true;
    }
    if (sa->sa_family == AF_INET6) {
        out->family = 6;
        memcpy(out->bytes, &((const struct sockaddr_in6 *)(const void *)sa)->sin6_addr, 16);
        return true;
    }
    return false;
}

static bool is_loopback(const struct tcp_address *a)
{
    return a->family == 4 ? a->bytes[0] == 127
                          : memcmp(a->bytes, &in6addr_loopback, sizeof(a->bytes)) == 0;
}

static bool is_link_local(const struct tcp_address *a)
{
    return a->family == 4 ? a->bytes[0] == 169 && a->bytes[1] == 254
                          : a->bytes[0] == 0xfe && (a->bytes[1] & 0xc0) == 0x80;
}

uint64_t tcp_host_id(void)
{
    char text[128] = {0};
    struct stat ns = {0};
    size_t n = 0;
    FILE *f = fopen("/proc/sys/kernel/random/boot_id", "re");

    if (f != NULL) {
        n = fread(text, 1, 64, f);
        fclose(f);
    }
    (void)stat("/proc/self/ns/net", &ns);
    memcpy(text + n, &ns.st_ino, sizeof(ns.st_ino));
    return hash_bytes(1, text, n + sizeof(ns.st_ino));
}

bool tcp_device_listed(const char *devices, const char *name)
{
    size_t len = strlen(name);

    if (devices == NULL || devices[0] == '\0' || strcmp(devices, "all") == 0)
        return true;
    for (const char *at = devices; *at != '\0';) {
        size_t word = strcspn(at, ","), bare = strcspn(at, ",:");

        if ((word == len || bare == len) && strncmp(at, name, len) == 0)
            return true;
        at += word;
        at += *at == ',';
    }
    return false;
}

uint32_t tcp_addresses_local(const char *devices, struct tcp_address *out)
{
    struct ifaddrs *list;
    uint32_t n = 0;

    if (getifaddrs(&list) != 0)
        return 0;
    for (int loopback = 0; loopback < 2; loopback++)
        for (struct ifaddrs *i = list; i != NULL && n < TCP_ADDRESSES_MAX; i = i->ifa_next) {
            struct tcp_address a;

            if ((i->ifa_flags & IFF_UP) && from_sockaddr(i->ifa_addr, &a) && !is_link_local(&a) &&
                is_loopback(&a) == (loopback == 1) && tcp_device_listed(devices, i->ifa_name))
                out[n++] = a;
        }
    freeifaddrs(list);
    return n;
}

/* Is a in the subnet of one of our interfaces? */
static bool is_near(const struct tcp_address *a, const struct ifaddrs *list)
{
    for (const struct ifaddrs *i = list; i != NULL; i = i->ifa_next) {
        struct tcp_address own, mask;
        bool same = true;

        if (!(i->ifa_flags & IFF_UP) || !from_sockaddr(i->ifa_addr, &own) ||
            !from_sockaddr(i->ifa_netmask, &mask) || own.family != a->family || is_loopback(&own))
            continue;
        for (size_t b = 0; b < sizeof(own.bytes); b++)
            same &= ((own.bytes[b] ^ a->bytes[b]) & mask.bytes[b]) == 0;
        if (same)
            return true;
    }
    return false;
}

uint32_t tcp_candidates(const struct tcp_offer *offer, uint64_t own_host, struct tcp_address *out)
{
    enum { LOOPBACK, NEAR, FAR, N_RANKS };
    struct ifaddrs *list = NULL;
    uint32_t n = 0;

    (void)getifaddrs(&list);
    for (int rank = 0; rank < N_RANKS; rank++)
        for (uint32_t i = 0; i < offer->n_addresses; i++) {
            const struct tcp_address *a = &offer->addresses[i];
            int is = is_loopback(a) ? LOOPBACK : is_near(a, list) ? NEAR : FAR;

            if (is == rank && (is != LOOPBACK || offer->host == own_host))
                out[n++] = *a;
        }
    if (list != NULL)
        freeifaddrs(list);
    return n;
}

struct tcp_address tcp_address_local(uint64_t incarnation)
{
    struct tcp_address a = {.family = TCP_FAMILY_LOCAL};

    memcpy(a.bytes, &incarnation, sizeof(incarnation));
    return a;
}

/* An abstract name: nothing is left behind in a file system. */
static socklen_t local_sockaddr(const struct tcp_address *a, struct sockaddr_un *out)
{
    uint64_t incarnation;
    int n;

    memcpy(&incarnation, a->bytes, sizeof(incarnation));
    out->sun_family = AF_UNIX;
    n = snprintf(out->sun_path + 1, sizeof(out->sun_path) - 1, "baton-kv-%016llx",
                 (unsigned long long)incarnation);
    return (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + (size_t)n);
}

void tcp_keep_alive(int fd)
{
    const int one = 1, idle_s = 1, between_s = 1, count = 3, unacked_ms = 5000;

    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
    setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &one, sizeof(one));
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle_s, sizeof(idle_s));
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &between_s, sizeof(between_s));
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &count, sizeof(count));
    setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &unacked_ms, sizeof(unacked_ms));
}

void tcp_break_soon(int fd)
{
    const int ms = TCP_BROKEN_MS;

    setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &ms, sizeof(ms));
}

socklen_t tcp_sockaddr(const struct tcp_address *a, uint16_t port, struct sockaddr_storage *out)
{
    memset(out, 0, sizeof(*out));
    if (a->family == TCP_FAMILY_LOCAL)
        return local_sockaddr(a, (struct sockaddr_un *)out);
    if (a->family == 4) {
        struct sockaddr_in *in = (struct sockaddr_in *)out;

        in->sin_family = AF_INET;
        in->sin_port = htons(port);
        memcpy(&in->sin_addr, a->bytes, 4);
        return sizeof(*in);
    }
    struct sockaddr_in6 *in6 = (struct sockaddr_in6 *)out;

    in6->sin6_family = AF_INET6;
    in6->sin6_port = htons(port);
    memcpy(&in6->sin6_addr, a->bytes, 16);
    return sizeof(*in6);
}

void tcp_address_text(const struct tcp_address *a, char *buf, size_t n)
{
    if (a->family == TCP_FAMILY_LOCAL)
        snprintf(buf, n, "this host");
    else if (inet_ntop(a->family == 4 ? AF_INET : AF_INET6, a->bytes, buf, (socklen_t)n) == NULL)
        snprintf(buf, n, "?");
}

/* A v4 connection on a socket for both families shows ::ffff:a.b.c.d. */
static void unmap(struct tcp_address *a)
{
    static const uint8_t prefix[12] = {[10] = 0xff, [11] = 0xff};

    if (a->family == 6 && memcmp(a->bytes, prefix, sizeof(prefix)) == 0) {
        memmove(a->bytes, a->bytes + 12, 4);
        memset(a->bytes + 4, 0, 12);
        a->family = 4;
    }
}

void tcp_socket_device(int fd, char *buf, size_t n)
{
    struct sockaddr_storage ss;
    socklen_t len = sizeof(ss);
    struct tcp_address own, a;
    struct ifaddrs *list;

    snprintf(buf, n, "?");
    if (getsockname(fd, (struct sockaddr *)&ss, &len) != 0 ||
        !from_sockaddr((struct sockaddr *)&ss, &own) || getifaddrs(&list) != 0)
        return;
    unmap(&own);
    for (struct ifaddrs *i = list; i != NULL; i = i->ifa_next)
        if (from_sockaddr(i->ifa_addr, &a) && a.family == own.family &&
            memcmp(a.bytes, own.bytes, sizeof(a.bytes)) == 0) {
            snprintf(buf, n, "%s", i->ifa_name);
            break;
        }
    freeifaddrs(list);
}
