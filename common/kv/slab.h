/*
 * slab: hands out fixed-size units (KV pages, or state slots) of one memory region.
 *
 * Owns      the free list, the reference counts, the quarantine marks; not the memory itself.
 * Promises  n_free + n_used + n_quarantined == n_units after every call; a quarantined unit is
 * never handed out; all-or-none takes; every call is O(units named). Threads   engine only.
 */
#ifndef BATON_COMMON_KV_SLAB_H
#define BATON_COMMON_KV_SLAB_H

#include <stdint.h>

#include "common/base/status.h"

struct slab;

/** @param what  names the unit in messages ("page", "state slot"); borrowed */
enum status_code slab_new(const char *what, uint32_t n_units, struct slab **out, struct status *st);
void slab_free(struct slab *s);

/**
 * Takes n units with one reference each, all or none.
 * @param ids  out, [n]; untouched on failure
 * @return ST_OK; ST_EXHAUSTED with the needed, free, quarantined and total counts
 */
enum status_code slab_take(struct slab *s, uint32_t n, uint32_t *ids, struct status *st);

/** One more owner for each. */
void slab_ref(struct slab *s, const uint32_t *ids, uint32_t n);

/** Gives up one reference of each; the last one frees the unit (or leaves it quarantined). */
void slab_give(struct slab *s, const uint32_t *ids, uint32_t n);

/** Marks units that a peer may still write: when their last reference goes they are held back until
 * slab_release(). */
void slab_quarantine(struct slab *s, const uint32_t *ids, uint32_t n);

/** Ends the quarantine: nobody can write the units any more. */
void slab_release(struct slab *s, const uint32_t *ids, uint32_t n);

/** References of a unit. */
uint32_t slab_refs(const struct slab *s, uint32_t id);

uint32_t slab_units(const struct slab *s);
uint32_t slab_n_free(const struct slab *s);
uint32_t slab_n_quarantined(const struct slab *s); /* held back, without an owner */

#endif
