/*
 * cable: an Ethernet cable between two network namespaces, with weather on it.
 *
 *   namespace A                 a process of its own                  namespace B
 *   IF_A (TAP) ──frames──▶ loss, rate, delay, order, flips ──frames──▶ IF_B (TAP)    and the other
 * way alike
 *
 * It is what `tc qdisc ... netem` is where the kernel has that; this needs no more than
 * /dev/net/tun. What happens to a frame is drawn from a seed, in the order in which frames come.
 * The kernel computes and checks TCP's checksums on a TAP, so a flipped bit loses its frame there,
 * as on a wire.
 *
 * Needs root. The process ends with the one that laid the cable, and the interfaces with it.
 */
#ifndef TESTS_LIB_CABLE_H
#define TESTS_LIB_CABLE_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

/** What happens to frames, in either direction. All zero: nothing. */
struct weather {
    uint32_t loss, duplicate, flip; /* frames of a million */
    uint32_t reorder;               /* frames of a million that overtake those that are delayed */
    uint32_t delay_us, jitter_us;   /* each waits delay +- jitter, and none overtakes another */
    uint64_t rate;                  /* bytes per second; 0: as fast as it goes */
};

/** Frames since the cable was laid, both directions together. */
struct cable_counts {
    uint64_t frames, bytes; /* that came in */
    uint64_t lost, overflowed, duplicated, flipped, overtook;
};

struct cable {
    pid_t pid;   /* of the process between; 0: none */
    int control; /* asks it */
};

/**
 * Makes IF_A in namespace ns_a and IF_B in ns_b (names as `ip netns` has them), both down and
 * without an address, and lays the cable. @return NULL, or why it cannot be (static text): no
 * /dev/net/tun, not root.
 */
const char *cable_lay(struct cable *c, const char *ns_a, const char *if_a, const char *ns_b,
                      const char *if_b, uint64_t seed);

/** Changes the weather for frames that come from now on; what is under way arrives as it would
 * have. */
void cable_set(struct cable *c, const struct weather *w);

struct cable_counts cable_count(struct cable *c);

/** Ends the process; both interfaces are gone. */
void cable_remove(struct cable *c);

/** Reads "loss 1% delay 2ms 1ms rate 400mbit duplicate 2% reorder 10% flip 0.5%" (netem's own
 * words, and flip for its corrupt). @return whether all of it was understood */
bool weather_parse(const char *text, struct weather *w);

#endif
