/*
 * pins: which units of an array are held, each until a second of its own.
 *
 * A wheel with a list for each second to come: holding, dropping and the end of a pin are O(1);
 * time that passes costs a look into one list a second.
 *
 * Owns      the lists; not the units.
 * Promises  a unit is held from pins_hold() until pins_drop() or the pins_advance() that reaches
 *           its second; nothing is allocated after pins_new().
 * Threads   engine only.
 */
#ifndef BATON_COMMON_KV_PINS_H
#define BATON_COMMON_KV_PINS_H

#include <stdbool.h>
#include <stdint.h>

#include "common/base/status.h"

struct pins;

enum { PINS_SECONDS_MAX = 3600 };

enum status_code pins_new(uint32_t n_units, struct pins **out, struct status *st);
void pins_free(struct pins *p);

/** Holds a unit for so many seconds from now, at most PINS_SECONDS_MAX; a pin that ends later stays
 * as it is. */
void pins_hold(struct pins *p, uint32_t unit, uint32_t seconds);

/** Ends a pin early. Nothing when there is none. */
void pins_drop(struct pins *p, uint32_t unit);

/**
 * It is now_s (seconds of any clock that does not go back).
 * @param ended  called for each unit whose time is over, after its pin has gone
 */
void pins_advance(struct pins *p, uint64_t now_s, void (*ended)(void *arg, uint32_t unit),
                  void *arg);

bool pins_has(const struct pins *p, uint32_t unit);

/** When the pin of a unit ends, by the clock of pins_advance(); 0: it has none. */
uint64_t pins_end_s(const struct pins *p, uint32_t unit);

/** Units that are held. */
uint32_t pins_n(const struct pins *p);

#endif
