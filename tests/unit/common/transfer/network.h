/*
 * network: two hosts, as far as the network is concerned.
 *
 *   namespace baton-a-PID                       namespace baton-b-PID
 *   bta-PID 10.77.1.1/24 ─────── veth ─────── btb-PID 10.77.1.2/24
 *   the sender                                  the receiver
 *
 * With weather the veth is a cable of our own (tests/lib/cable.h).
 *
 * Both have a loopback interface that is up, and share this machine's memory: what keeps them on
 * the network is --kv-transport tcp. Needs root and iproute2; says so where they are not there.
 */
#ifndef TESTS_UNIT_COMMON_TRANSFER_NETWORK_H
#define TESTS_UNIT_COMMON_TRANSFER_NETWORK_H

#include <stdbool.h>

#include "tests/lib/cable.h"

struct network {
    char from_ns[32], to_ns[32], from_if[16], to_if[16]; /* from_ns is "" where there is none */
};

/** cmocka group set-up and tear-down; they make and drop the process's one network. The second is
 * one with weather, where the machine has what it takes; elsewhere it says what is missing, and
 * makes the first. */
int network_make(void **state);
int network_make_with_weather(void **state);
int network_drop(void **state);

/** The network; from_ns is "" when none could be made. */
const struct network *network_get(void);

/** The cable of a network with weather; its pid is 0 where there is none. */
struct cable network_cable(void);

/** Changes the weather, as weather_parse reads it. @return false: this network has none */
bool network_weather(const char *words);

/** Runs a shell command; false when it fails. */
bool network_shell(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

#endif
