/*
 * send_floor: what the kernel alone takes for an event that goes to a client of its own.
 *
 *   send_floor CONNECTIONS EVENTS_PER_SECOND SECONDS
 *
 * One process sends 300 bytes over loopback TCP to each connection in turn, in steps of 10 ms as
 * the mocks do; a child reads. Prints the sender's processor time per send() in microseconds: no
 * server that writes once for each client and step can be below it on this machine.
 */
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/base/clock.h"

enum { EVENT_BYTES = 300, STEP_US = 10000 };

static void die(const char *what)
{
    perror(what);
    exit(1);
}

static void read_all(const int *fds, int n)
{
    static char sink[65536];
    struct epoll_event got[256];
    int ep = epoll_create1(0);

    (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
    for (int i = 0; i < n; i++) {
        struct epoll_event e = {.events = EPOLLIN, .data.fd = fds[i]};

        if (epoll_ctl(ep, EPOLL_CTL_ADD, fds[i], &e) != 0)
            die("epoll_ctl");
    }
    for (;;) {
        int k = epoll_wait(ep, got, 256, -1);

        for (int i = 0; i < k; i++)
            if (read(got[i].data.fd, sink, sizeof(sink)) <= 0)
                _exit(0);
    }
}

static void connect_pairs(int *out, int *in, int n)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof(a);
    int listener = socket(AF_INET, SOCK_STREAM, 0), one = 1;

    if (bind(listener, (struct sockaddr *)&a, sizeof(a)) != 0 || listen(listener, 16) != 0 ||
        getsockname(listener, (struct sockaddr *)&a, &len) != 0)
        die("listen");
    for (int i = 0; i < n; i++) {
        in[i] = socket(AF_INET, SOCK_STREAM, 0);
        if (in[i] < 0 || connect(in[i], (struct sockaddr *)&a, sizeof(a)) != 0)
            die("connect");
        out[i] = accept(listener, NULL, NULL);
        if (out[i] < 0)
            die("accept");
        (void)setsockopt(out[i], IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
    }
    close(listener);
}

static double cpu_us(void)
{
    struct rusage r;

    getrusage(RUSAGE_SELF, &r);
    return (double)(r.ru_utime.tv_sec + r.ru_stime.tv_sec) * 1e6 +
           (double)(r.ru_utime.tv_usec + r.ru_stime.tv_usec);
}

int main(int argc, char **argv)
{
    static char event[EVENT_BYTES];
    int n = argc == 4 ? atoi(argv[1]) : 0, rate = argc == 4 ? atoi(argv[2]) : 0, at = 0;
    int *out, *in;
    uint64_t begin, end, sent = 0;
    double before;

    if (n <= 0 || rate <= 0) {
        fprintf(stderr, "usage: send_floor CONNECTIONS EVENTS_PER_SECOND SECONDS\n");
        return 2;
    }
    out = calloc((size_t)n, sizeof(*out));
    in = calloc((size_t)n, sizeof(*in));
    if (out == NULL || in == NULL)
        die("calloc");
    connect_pairs(out, in, n);
    if (fork() == 0)
        read_all(in, n);
    before = cpu_us();
    begin = clock_now_us();
    end = begin + (uint64_t)atoi(argv[3]) * 1000000;
    for (uint64_t step = begin; step < end; step += STEP_US) {
        uint64_t now = clock_now_us();

        if (step > now)
            usleep((useconds_t)(step - now));
        for (int i = rate / (1000000 / STEP_US); i > 0; i--, at = (at + 1) % n)
            if (send(out[at], event, sizeof(event), MSG_DONTWAIT | MSG_NOSIGNAL) > 0)
                sent++;
    }
    printf("%.2f\n", (cpu_us() - before) / (double)(sent > 0 ? sent : 1));
    return 0;
}
