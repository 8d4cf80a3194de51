#include "router/request_path.h"

#include <stdio.h>

#include "common/base/json.h"

void request_path_add(struct request_path *p, const Baton__V1__HandoffStats *s)
{
    if (p->n_handoffs++ == 0)
        p->cached_tokens = s->cached_tokens;
    snprintf(p->prefill, sizeof(p->prefill), "%s", s->prefill == NULL ? "" : s->prefill);
    snprintf(p->decode, sizeof(p->decode), "%s", s->decode == NULL ? "" : s->decode);
    snprintf(p->transport, sizeof(p->transport), "%s", s->transport == NULL ? "" : s->transport);
    p->kv_bytes += s->kv_bytes;
    p->kv_pages += s->kv_pages;
    p->pages_reused += s->pages_reused;
    p->checksums_verified += s->checksums_verified;
    p->retries += s->retries;
    p->prefill_us += s->prefill_us;
    p->transfer_us += s->transfer_us;
}

static void put_string(struct buf *out, const char *name, const char *value)
{
    buf_printf(out, "\"%s\":", name);
    json_write_string(out, value, strlen(value));
    buf_puts(out, ",");
}

void request_path_json(const struct request_path *p, struct buf *out)
{
    put_string(out, "prefill", p->prefill);
    put_string(out, "decode", p->decode);
    put_string(out, "transport", p->transport);
    buf_printf(out,
               "\"handoffs\":%u,\"kv_bytes\":%llu,\"kv_pages\":%u,\"pages_reused\":%u,"
               "\"checksums_verified\":%u,\"transfer_retries\":%u,\"cached_tokens\":%u,"
               "\"prefill_ms\":%.3f,\"transfer_ms\":%.3f",
               p->n_handoffs, (unsigned long long)p->kv_bytes, p->kv_pages, p->pages_reused,
               p->checksums_verified, p->retries, p->cached_tokens, (double)p->prefill_us / 1e3,
               (double)p->transfer_us / 1e3);
}
