/*
 * kv_mirror: the KV of a GPU, again in host memory: where transports reach it that do not reach the
 * device. Same units, same offsets; what a handoff is about is copied when it leaves or arrives.
 *
 *   device pages, slots  ──out──▶  host slabs ──transfer──▶ host slabs  ──in──▶  device pages,
 * slots └ CRC32C, on the device                            CRC32C, on the device ┘
 *
 * Owns      the KV on the device.
 * Promises  the checksum is that of the device's bytes at either end: what the bus or the host
 *           garbles is found like what the network garbles.
 * Limits    takes as much host memory as the KV has on the device; the engine waits for a copy
 *           (some 20 us a page).
 * Threads   engine.
 */
#ifndef BATON_COMMON_WORKER_KV_MIRROR_H
#define BATON_COMMON_WORKER_KV_MIRROR_H

#include "common/model/model.h"
#include "common/worker/handoff.h"

struct kv_mirror;

/**
 * Takes the device's KV and makes host memory its mirror.
 * @param host    as many pages and slots as the device shall have, in host memory; outlives it
 * @param device  out: the KV that the model computes with; the mirror's, until kv_mirror_free()
 * @return ST_OK; ST_EXHAUSTED, with nothing taken
 */
enum status_code kv_mirror_new(struct model *m, const struct kv_memory *host,
                               struct kv_memory *device, struct kv_mirror **out, struct status *st);

/** Before the host memory goes, and before model_free(). NULL is fine. */
void kv_mirror_free(struct kv_mirror *k);

/** Device to host: the list's local bytes. @param crc  out, [l->n_groups]
 * @return ST_OK; ST_INTERNAL: the device failed */
enum status_code kv_mirror_out(struct kv_mirror *k, const struct handoff_list *l, uint32_t *crc,
                               struct status *st);

/** Host to device. @param crc  [l->n_groups], what they must be
 * @return ST_OK; ST_CORRUPT naming group and both values; ST_INTERNAL: the device failed */
enum status_code kv_mirror_in(struct kv_mirror *k, const struct handoff_list *l,
                              const uint32_t *crc, struct status *st);

#endif
