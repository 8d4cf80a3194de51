/* The cable that the storm hangs its weather on: what it is told to do to frames, it does, and
 * counts. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <arpa/inet.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <sys/socket.h>
#include <unistd.h>
#include <cmocka.h>

#include "common/base/clock.h"
#include "network.h"
#include "tests/lib/cable.h"

enum { PORT = 4711, BYTES = 1000, N = 300 };

static struct cable cable;
static int from = -1, to = -1; /* UDP sockets, one in each namespace */

/* What arrived of datagrams 0 ... N - 1. */
struct arrival {
    int n, times[N], out_of_order;
    uint64_t first_us, last_us;
};

static int socket_in(const char *ns)
{
    int home = open("/proc/self/ns/net", O_RDONLY), there, s;
    char path[128];

    snprintf(path, sizeof(path), "/run/netns/%s", ns);
    there = open(path, O_RDONLY);
    assert_int_equal(setns(there, CLONE_NEWNET), 0);
    s = socket(AF_INET, SOCK_DGRAM, 0);
    assert_int_equal(setns(home, CLONE_NEWNET), 0);
    close(there);
    close(home);
    return s;
}

static void fill(uint8_t data[BYTES], uint32_t i)
{
    for (uint32_t b = 0; b < BYTES; b++)
        data[b] = (uint8_t)(i * 31 + b * 7);
    memcpy(data, &i, sizeof(i));
}

static void send_one(uint32_t i)
{
    struct sockaddr_in there = {.sin_family = AF_INET, .sin_port = htons(PORT)};
    uint8_t data[BYTES];

    inet_pton(AF_INET, "10.77.1.2", &there.sin_addr);
    fill(data, i);
    assert_int_equal(sendto(from, data, BYTES, 0, (struct sockaddr *)&there, sizeof(there)), BYTES);
}

/* Takes what comes until none has for quiet_ms. Every byte must be as it was sent. */
static void receive(struct arrival *a, int quiet_ms)
{
    struct pollfd p = {.fd = to, .events = POLLIN};
    int last = -1;

    while (poll(&p, 1, quiet_ms) == 1) {
        uint8_t data[BYTES], want[BYTES];
        uint32_t i;

        assert_int_equal(recv(to, data, BYTES, 0), BYTES);
        memcpy(&i, data, sizeof(i));
        fill(want, i);
        assert_memory_equal(data, want, BYTES);
        assert_true(i < N);
        a->last_us = clock_now_us();
        if (a->n++ == 0)
            a->first_us = a->last_us;
        a->times[i]++;
        a->out_of_order += (int)i < last;
        last = (int)i;
    }
}

static void blow(const char *words)
{
    struct weather w;

    assert_true(weather_parse(words, &w));
    cable_set(&cable, &w);
}

/* Sends N datagrams in that weather. @return what the cable did to frames meanwhile */
static struct cable_counts send_all(const char *words, struct arrival *a)
{
    struct cable_counts before = cable_count(&cable), after;

    memset(a, 0, sizeof(*a));
    blow(words);
    for (uint32_t i = 0; i < N; i++)
        send_one(i);
    receive(a, 500);
    after = cable_count(&cable);
    return (struct cable_counts){.lost = after.lost - before.lost,
                                 .overflowed = after.overflowed - before.overflowed,
                                 .duplicated = after.duplicated - before.duplicated,
                                 .flipped = after.flipped - before.flipped,
                                 .overtook = after.overtook - before.overtook,
                                 .frames = after.frames - before.frames};
}

static void in_fair_weather_all_arrives_in_order(void **state)
{
    struct arrival a;
    struct cable_counts c;

    (void)state;
    c = send_all("", &a);
    assert_int_equal(a.n, N);
    assert_int_equal(a.out_of_order, 0);
    assert_int_equal(c.frames, N);
    assert_int_equal(c.lost + c.duplicated + c.flipped + c.overtook + c.overflowed, 0);
}

static void what_is_lost_is_lost_and_counted(void **state)
{
    struct arrival a;
    struct cable_counts c;

    (void)state;
    c = send_all("loss 20%", &a);
    assert_in_range(c.lost, N / 10, N * 3 / 10);
    assert_int_equal(a.n, N - c.lost);
}

static void delay_is_at_least_what_was_asked_and_keeps_the_order(void **state)
{
    struct arrival a;
    uint64_t start = clock_now_us();

    (void)state;
    send_all("delay 40ms 10ms", &a);
    assert_int_equal(a.n, N);
    assert_int_equal(a.out_of_order, 0);
    assert_true(a.first_us - start >= 30000);
}

static void a_rate_is_kept(void **state)
{
    struct arrival a;
    uint64_t start = clock_now_us();

    (void)state;
    send_all("rate 8mbit", &a); /* 1 MB per second: 300 frames of 1,042 bytes take 313 ms */
    assert_int_equal(a.n, N);
    assert_true(a.last_us - start >= 300000);
}

static void frames_overtake_each_other_when_told_to(void **state)
{
    struct arrival a;
    struct cable_counts c;

    (void)state;
    c = send_all("delay 20ms reorder 20%", &a);
    assert_int_equal(a.n, N);
    assert_true(c.overtook > 0 && a.out_of_order > 0);
}

static void a_duplicate_comes_twice(void **state)
{
    struct arrival a;
    struct cable_counts c;
    int twice = 0;

    (void)state;
    c = send_all("duplicate 30%", &a);
    assert_true(c.duplicated > 0);
    assert_int_equal(a.n, N + (int)c.duplicated);
    for (int i = 0; i < N; i++)
        twice += a.times[i] == 2;
    assert_int_equal(twice, c.duplicated);
}

/* The checksums of the kernel see it: what does arrive is right (receive compares). */
static void a_flipped_bit_loses_its_frame(void **state)
{
    struct arrival a;
    struct cable_counts c;

    (void)state;
    c = send_all("flip 30%", &a);
    assert_in_range(c.flipped, N / 6, N / 2);
    assert_in_range(a.n, N - (int)c.flipped, N - 1);
}

static void words_are_understood_or_refused(void **state)
{
    static const char *const bad[] = {"loss",     "loss 1",   "loss 101%",   "delay 2",
                                      "delay 2s", "rain 10%", "rate 0mbit",  "rate 5",
                                      "loss -1%", "flip x",   "delay 1ms 2", "loss 1% delay"};
    struct weather w;

    (void)state;
    assert_true(weather_parse("loss 0.5% delay 2ms 500us rate 400mbit", &w));
    assert_int_equal(w.loss, 5000);
    assert_int_equal(w.delay_us, 2000);
    assert_int_equal(w.jitter_us, 500);
    assert_int_equal(w.rate, 50000000);
    assert_true(weather_parse("rate 1000bps duplicate 100% reorder 1% flip 2%", &w));
    assert_int_equal(w.rate, 1000);
    assert_int_equal(w.duplicate, 1000000);
    assert_int_equal(w.loss, 0);
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
        assert_false(weather_parse(bad[i], &w));
}

static int open_ends(void **state)
{
    struct sockaddr_in own = {.sin_family = AF_INET, .sin_port = htons(PORT)};
    struct arrival a = {0};
    const struct network *n;
    int room = 16 << 20; /* for all of them, and for duplicates */

    if (network_make_with_weather(state) != 0)
        return -1;
    n = network_get();
    cable = network_cable();
    if (cable.pid == 0)
        return 0;
    /* no frames but the test's own: no neighbour discovery, and the other's address is known */
    network_shell("ip netns exec %s sysctl -qw net.ipv6.conf.all.disable_ipv6=1", n->from_ns);
    network_shell("ip netns exec %s sysctl -qw net.ipv6.conf.all.disable_ipv6=1", n->to_ns);
    from = socket_in(n->from_ns);
    to = socket_in(n->to_ns);
    if (setsockopt(to, SOL_SOCKET, SO_RCVBUFFORCE, &room, sizeof(room)) != 0 ||
        bind(to, (struct sockaddr *)&own, sizeof(own)) != 0)
        return -1;
    send_one(0);
    receive(&a, 1000);
    network_shell("ip -n %s neigh change 10.77.1.2 nud permanent "
                  "lladdr $(ip -n %s -br link show %s | awk '{print $3}') dev %s",
                  n->from_ns, n->to_ns, n->to_if, n->from_if);
    return a.n == 1 ? 0 : -1;
}

static int close_ends(void **state)
{
    close(from);
    close(to);
    return network_drop(state);
}

int main(void)
{
    const struct CMUnitTest words[] = {cmocka_unit_test(words_are_understood_or_refused)};
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(in_fair_weather_all_arrives_in_order),
        cmocka_unit_test(what_is_lost_is_lost_and_counted),
        cmocka_unit_test(delay_is_at_least_what_was_asked_and_keeps_the_order),
        cmocka_unit_test(a_rate_is_kept),
        cmocka_unit_test(frames_overtake_each_other_when_told_to),
        cmocka_unit_test(a_duplicate_comes_twice),
        cmocka_unit_test(a_flipped_bit_loses_its_frame),
    };
    int rc = cmocka_run_group_tests_name("weather", words, NULL, NULL);

    if (open_ends(NULL) != 0)
        return 1;
    if (cable.pid == 0) {
        close_ends(NULL);
        return rc != 0 ? rc : 77;
    }
    return rc + cmocka_run_group_tests_name("cable", tests, NULL, close_ends);
}
