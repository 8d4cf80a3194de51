/*
 * kv_sender: posts a handoff's finished pages to its decode worker.
 *
 * Threads   engine. Completions arrive as PM_PUT_DONE in the mailbox.
 */
#ifndef BATON_PREFILL_KV_SENDER_H
#define BATON_PREFILL_KV_SENDER_H

#include "common/kv/geometry.h"
#include "common/worker/kv_mirror.h"
#include "prefill/handoff_state.h"

/**
 * Posts logical pages [h->n_groups_sent, end_page) as one transfer; when last, what is left of the
 * pages and the state slot, as several: the peer compares each while the next is on its way.
 * Nothing to send is fine.
 * @param mirror  where the KV is a GPU's: the host memory that is sent from; else NULL
 * @return ST_OK; ST_UNAVAILABLE when the peer is lost; ST_EXHAUSTED
 */
enum status_code kv_sender_post(struct handoff *h, const struct kv_geometry *g, uint32_t end_page,
                                bool last, struct kv_mirror *mirror, struct mailbox *engine,
                                struct status *st);

/** Asks the running transfers of h to end early; each still completes. */
void kv_sender_cancel(struct handoff *h);

#endif
