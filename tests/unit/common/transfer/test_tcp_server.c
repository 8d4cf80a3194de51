/* Strangers and broken senders at the socket lane: they are turned away, the receiver stays well
 * and its memory untouched. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
#include <errno.h>
#include <cmocka.h>

#include "common/transfer/descriptor.h"
#include "common/transfer/tcp_wire.h"
#include "pair.h"

struct door {
    struct node receiver;
    struct tcp_offer offer;
};

static struct door door_open(void)
{
    struct door d = {.receiver = pair_receiver(TRANSFER_TCP, false)};
    char bytes[DESC_MAX];
    struct descriptor desc;
    struct status st;
    size_t len = node_describe(&d.receiver, bytes, sizeof(bytes));

    assert_int_equal(descriptor_read(bytes, len, &desc, &st), ST_OK);
    d.offer = desc.tcp;
    assert_true(d.offer.port != 0 && d.offer.n_addresses > 0);
    return d;
}

static int dial(const struct door *d)
{
    struct timeval bound = {.tv_sec = 20};
    struct sockaddr_storage ss;
    struct tcp_address to[TCP_ADDRESSES_MAX];
    socklen_t len;
    int fd;

    assert_true(tcp_candidates(&d->offer, tcp_host_id(), to) > 0);
    len = tcp_sockaddr(&to[0], d->offer.port, &ss);
    fd = socket(ss.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(connect(fd, (struct sockaddr *)&ss, len), 0);
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &bound, sizeof(bound));
    return fd;
}

static struct tcp_hello hello_of(const struct door *d)
{
    struct tcp_hello h = {.version = TCP_VERSION, .incarnation = 5};

    memcpy(h.magic, TCP_HELLO_MAGIC, sizeof(h.magic));
    memcpy(h.token, d->offer.token, sizeof(h.token));
    return h;
}

/* Dials and is let in. */
static int enter(const struct door *d)
{
    struct tcp_hello h = hello_of(d);
    struct tcp_greeting g;
    int fd = dial(d);

    assert_int_equal(send(fd, &h, sizeof(h), MSG_NOSIGNAL), sizeof(h));
    assert_int_equal(recv(fd, &g, sizeof(g), MSG_WAITALL), sizeof(g));
    assert_int_equal(g.code, TCP_COME_IN);
    return fd;
}

/* The receiver hangs up (or resets), within the bound. */
static void hangs_up(int fd)
{
    char byte[64];
    ssize_t n;

    do
        n = recv(fd, byte, sizeof(byte), 0);
    while (n > 0);
    if (n < 0)
        assert_int_equal(errno, ECONNRESET);
    close(fd);
}

static void untouched_and_well(struct door *d)
{
    struct node sender;

    assert_int_equal(node_count_other(&d->receiver, 0, CANARY), 0);
    assert_int_equal(node_count_other(&d->receiver, 1, CANARY), 0);
    sender = pair_sender(TRANSFER_TCP);
    pair_connect(&sender, &d->receiver);
    pair_check_small_put(&sender, &d->receiver, 1);
    node_end(&sender);
    node_end(&d->receiver);
}

static void strangers_are_turned_away(void **state)
{
    struct door d = door_open();
    struct tcp_hello h = hello_of(&d);
    struct tcp_greeting g;
    int fd;

    (void)state;
    fd = dial(&d);
    send(fd, "GET / HTTP/1.1\r\nHost: somewhere.example.org\r\nAccept: */*\r\n\r\n......", 64, 0);
    hangs_up(fd);
    h.token[15] ^= 1;
    fd = dial(&d);
    send(fd, &h, sizeof(h), 0);
    assert_int_equal(recv(fd, &g, sizeof(g), MSG_WAITALL), sizeof(g));
    assert_int_equal(g.code, TCP_OTHER_TOKEN);
    hangs_up(fd);
    h = hello_of(&d);
    h.version = 9;
    fd = dial(&d);
    send(fd, &h, sizeof(h), 0);
    assert_int_equal(recv(fd, &g, sizeof(g), MSG_WAITALL), sizeof(g));
    assert_int_equal(g.code, TCP_OTHER_VERSION);
    hangs_up(fd);
    untouched_and_well(&d);
}

static void a_silent_crowd_does_not_shut_the_door_for_ever(void **state)
{
    enum { CROWD = 80 };
    struct door d = door_open();
    int fds[CROWD];

    (void)state;
    for (int i = 0; i < CROWD; i++)
        fds[i] = dial(&d);
    for (int i = 0; i < CROWD; i++)
        hangs_up(
            fds[i]); /* those beyond the limit at once, the others after the greeting's bound */
    untouched_and_well(&d);
}

static void send_frame(int fd, struct tcp_header h, const struct tcp_entry *entries, bool seal)
{
    if (seal)
        h.crc = tcp_frame_crc(&h, entries);
    send(fd, &h, sizeof(h), MSG_NOSIGNAL);
    if (h.n_entries <= TCP_ENTRIES_MAX)
        send(fd, entries, h.n_entries * sizeof(*entries), MSG_NOSIGNAL);
}

static void frames_that_point_outside_end_the_connection(void **state)
{
    static const struct tcp_entry bad[] = {
        {.slab = 0, .offset = SLAB, .bytes = 8},
        {.slab = 0, .offset = SLAB - 4, .bytes = 8},
        {.slab = 0, .offset = UINT64_MAX - 3, .bytes = 8},
        {.slab = 0, .offset = 0, .bytes = UINT64_MAX},
        {.slab = 2, .offset = 0, .bytes = 8},
        {.slab = DESCRIPTOR_SLABS, .offset = 0, .bytes = 8},
        {.slab = UINT32_MAX, .offset = 0, .bytes = 8},
    };
    struct door d = door_open();

    (void)state;
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        struct tcp_entry entries[2] = {{.slab = 0, .offset = 64, .bytes = 8}, bad[i]};
        int fd = enter(&d);

        send_frame(fd, (struct tcp_header){.type = TCP_PUT, .n_entries = 2, .bytes = 16}, entries,
                   true);
        send(fd, "0123456789abcdef", 16, MSG_NOSIGNAL);
        hangs_up(fd);
    }
    untouched_and_well(&d);
}

static void broken_frames_end_the_connection(void **state)
{
    static const struct {
        struct tcp_header header;
        bool seal;
    } bad[] = {
        {{.type = 0}, true},
        {{.type = 99}, true},
        {{.type = TCP_PUT, .n_entries = 0}, true},
        {{.type = TCP_PUT, .n_entries = TCP_ENTRIES_MAX + 1}, false},
        {{.type = TCP_PUT, .n_entries = UINT32_MAX, .bytes = 8}, false},
        {{.type = TCP_PUT, .n_entries = 1, .bytes = 8}, false}, /* not sealed */
        {{.type = TCP_PUT, .n_entries = 1, .bytes = 9}, true},  /* entries say 8 */
        {{.type = TCP_PUT, .n_entries = 1, .bytes = 1ull << 40}, true},
        {{.type = TCP_FLUSH, .seq = 3}, false},
        {{.type = TCP_BYE, .n_entries = 1}, true},
    };
    struct door d = door_open();

    (void)state;
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        struct tcp_entry entry = {.slab = 0, .offset = 64, .bytes = 8};
        int fd = enter(&d);

        send_frame(fd, bad[i].header, &entry, bad[i].seal);
        send(fd, "01234567", 8, MSG_NOSIGNAL);
        hangs_up(fd);
    }
    untouched_and_well(&d);
}

static void nothing_is_taken_after_a_goodbye(void **state)
{
    struct door d = door_open();
    struct tcp_entry entry = {.slab = 0, .offset = 64, .bytes = 8};
    struct tcp_ack ack;
    int fd = enter(&d);

    (void)state;
    send_frame(fd, (struct tcp_header){.type = TCP_BYE, .seq = 77}, NULL, true);
    assert_int_equal(recv(fd, &ack, sizeof(ack), MSG_WAITALL), sizeof(ack));
    assert_int_equal(ack.seq, 77);
    send_frame(fd, (struct tcp_header){.type = TCP_PUT, .n_entries = 1, .bytes = 8}, &entry, true);
    hangs_up(fd);
    untouched_and_well(&d);
}

static void a_byte_at_a_time_is_a_put_as_well(void **state)
{
    struct door d = door_open();
    struct tcp_entry entries[2] = {{.slab = 0, .offset = 1000, .bytes = 5},
                                   {.slab = 1, .offset = 2000, .bytes = 3}};
    struct tcp_header put = {.type = TCP_PUT, .n_entries = 2, .bytes = 8};
    struct tcp_header flush = {.type = TCP_FLUSH, .seq = 1};
    struct tcp_ack ack;
    struct buf all = {0};
    char got[8];
    int fd = enter(&d);

    (void)state;
    put.crc = tcp_frame_crc(&put, entries);
    flush.crc = tcp_frame_crc(&flush, NULL);
    buf_append(&all, &put, sizeof(put));
    buf_append(&all, entries, sizeof(entries));
    buf_append(&all, "fivebSIX", 8);
    buf_append(&all, &flush, sizeof(flush));
    for (size_t i = 0; i < all.len; i++)
        assert_int_equal(send(fd, all.data + i, 1, 0), 1);
    assert_int_equal(recv(fd, &ack, sizeof(ack), MSG_WAITALL), sizeof(ack));
    assert_int_equal(ack.seq, 1);
    node_read(&d.receiver, 0, 1000, 5, got);
    assert_memory_equal(got, "fiveb", 5);
    node_read(&d.receiver, 1, 2000, 3, got);
    assert_memory_equal(got, "SIX", 3);
    assert_int_equal(node_count_other(&d.receiver, 0, CANARY), 5);
    assert_int_equal(node_count_other(&d.receiver, 1, CANARY), 3);
    close(fd);
    buf_deinit(&all);
    node_end(&d.receiver);
}

static void random_bytes_after_the_greeting_do_no_harm(void **state)
{
    struct door d = door_open();
    uint64_t seed = 7;

    (void)state;
    for (int round = 0; round < 200; round++) {
        struct tcp_entry entries[4];
        struct tcp_header h = {.type = TCP_PUT, .n_entries = 1 + (uint32_t)round % 4};
        uint8_t *raw = (uint8_t *)entries;
        int fd = enter(&d);

        for (size_t i = 0; i < sizeof(entries); i++) {
            seed = seed * 6364136223846793005u + 1442695040888963407u;
            raw[i] = seed >> 62 ? 0xff : (uint8_t)(seed >> 40);
        }
        h.bytes = entries[0].bytes & 0xffff;
        send_frame(fd, h, entries, true);
        shutdown(fd, SHUT_WR);
        hangs_up(fd);
    }
    untouched_and_well(&d);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(strangers_are_turned_away),
        cmocka_unit_test(a_silent_crowd_does_not_shut_the_door_for_ever),
        cmocka_unit_test(frames_that_point_outside_end_the_connection),
        cmocka_unit_test(broken_frames_end_the_connection),
        cmocka_unit_test(nothing_is_taken_after_a_goodbye),
        cmocka_unit_test(a_byte_at_a_time_is_a_put_as_well),
        cmocka_unit_test(random_bytes_after_the_greeting_do_no_harm),
    };

    return cmocka_run_group_tests_name("transfer tcp server", tests, NULL, NULL);
}
