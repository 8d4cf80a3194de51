#include "prefill/replies.h"

#include "common/base/log.h"
#include "common/rpc/rpc_message.h"
#include "common/worker/worker.h"

static enum status_code send(struct prefill_peer *peer, const Baton__V1__PrefillReply *reply,
                             struct status *st)
{
    if (peer->session_closed)
        return status_set(st, ST_UNAVAILABLE, "decode worker %s is gone", peer->name);
    return rpc_session_send_message(peer->link->session, &reply->base, st);
}

/* A reply that cannot be queued means a peer that no longer reads: it will notice its session end.
 */
static void send_or_log(struct prefill_peer *peer, const Baton__V1__PrefillReply *reply)
{
    struct status st;

    if (send(peer, reply, &st) != ST_OK)
        log_debug("reply to %s dropped: %s", peer->name, st.msg);
}

void reply_hello(struct prefill_peer *peer, const struct worker *w)
{
    Baton__V1__Identity identity;
    Baton__V1__PrefillReply reply = BATON__V1__PREFILL_REPLY__INIT;

    worker_identity(w, &identity);
    reply.hello = &identity;
    send_or_log(peer, &reply);
}

void reply_stopped(struct prefill_peer *peer, uint64_t request_id, const struct status *error)
{
    Baton__V1__PrefillReply reply = BATON__V1__PREFILL_REPLY__INIT;
    Baton__V1__PrefillStopped stopped = BATON__V1__PREFILL_STOPPED__INIT;
    Baton__V1__Error e = BATON__V1__ERROR__INIT;

    stopped.request_id = request_id;
    if (error != NULL) {
        e.code = error->code;
        e.message = (char *)error->msg;
        stopped.error = &e;
    }
    reply.stopped = &stopped;
    send_or_log(peer, &reply);
}

void reply_written(struct prefill_peer *peer, uint64_t request_id, uint32_t first, uint32_t n,
                   uint32_t *checksums)
{
    Baton__V1__PrefillReply reply = BATON__V1__PREFILL_REPLY__INIT;
    Baton__V1__PrefillWritten written = BATON__V1__PREFILL_WRITTEN__INIT;

    written.request_id = request_id;
    written.first = first;
    written.n_checksums = n;
    written.checksums = checksums;
    reply.written = &written;
    send_or_log(peer, &reply);
}

enum status_code reply_done(const struct handoff *h, const struct worker *w, struct status *st)
{
    Baton__V1__PrefillReply reply = BATON__V1__PREFILL_REPLY__INIT;
    Baton__V1__PrefillDone done = BATON__V1__PREFILL_DONE__INIT;
    Baton__V1__HandoffStats stats = BATON__V1__HANDOFF_STATS__INIT;
    Baton__V1__Logprobs first_message, prompt_message;
    struct logprobs first = {0};
    char transport[128];

    (void)w;
    transfer_peer_transport(h->peer->transfer, transport, sizeof(transport));
    stats.has_kv_bytes = stats.has_kv_pages = stats.has_pages_reused = true;
    stats.kv_bytes = h->kv_bytes;
    stats.kv_pages = h->n_pages - h->n_present;
    stats.pages_reused = h->n_present;
    stats.transport = transport;
    stats.has_prefill_us = stats.has_transfer_us = stats.has_retries = true;
    stats.prefill_us = h->compute_us;
    stats.transfer_us = h->transfer_us;
    stats.retries = h->n_resends;
    stats.has_hidden_bytes = stats.has_last_bytes = stats.has_tail_us = true;
    stats.hidden_bytes = h->hidden_bytes;
    stats.last_bytes = h->last_bytes;
    stats.tail_us = h->tail_us;
    stats.has_cached_tokens = true;
    stats.cached_tokens = h->n_cached;
    done.request_id = h->id;
    done.first_token = h->first_token;
    done.n_checksums = h->n_groups_sent - h->n_present;
    done.checksums = h->crc;
    done.stats = &stats;
    if (h->seq.logprobs != NULL) {
        if (logprobs_add(&first, h->seq.logprobs, st) != ST_OK)
            return st->code;
        logprobs_write(&first, &first_message);
        done.logprobs = &first_message;
    }
    if (h->sampling.prompt_logprobs) {
        logprobs_write(&h->prompt_logprobs, &prompt_message);
        done.prompt_logprobs = &prompt_message;
    }
    reply.done = &done;
    send(h->peer, &reply, st);
    logprobs_deinit(&first);
    return st->code;
}
