/* The lane over UCX: RDMA writes, or plain copies where the peer's memory can be mapped. */
#include <stdlib.h>
#include <string.h>

#include "common/base/crc32c.h"
#include "common/base/log.h"
#include "common/transfer/internal.h"

enum {
    WINDOW_BYTES = 8 << 20, /* posted and not ended, per peer */
    WINDOW_REQUESTS = 1024,
    CLOSING_MS = 10,  /* longest sleep while the endpoint closes */
    PENDING_MS = 200, /* longest sleep while requests are out: a net under UCX's wake-ups */
};

/* A larger slab is mapped by use: where large pages are not to be had, mapping takes time, and the
 * thread serves others. */
static const uint64_t MAP_AHEAD_BYTES = 16ull << 30;

struct lane_ucx {
    ucp_ep_h ep;     /* NULL once its close has begun */
    void *close_req; /* NULL, or the close under way */
    bool error_seen; /* UCX's error callback came; handled by tend() */
    ucs_status_t error;
    ucp_rkey_h rkeys[DESCRIPTOR_SLABS];
    uint8_t *mapped[DESCRIPTOR_SLABS]; /* the peer's slab in our address space, or NULL */
    uint64_t window_bytes;             /* posted and not ended */
    uint32_t window_requests;
};

/* A request that UCX has not finished. */
struct post {
    struct put *put;
    uint64_t bytes;
    void *scratch; /* freed with the request */
};

/* From inside progress: only noted. */
static void on_error(void *arg, ucp_ep_h ep, ucs_status_t status)
{
    struct lane_ucx *l = arg;

    (void)ep;
    l->error_seen = true;
    l->error = status;
}

static bool ucx_has_room(const struct transfer_peer *p)
{
    return p->ucx->window_bytes < WINDOW_BYTES && p->ucx->window_requests < WINDOW_REQUESTS;
}

static struct post *post_new(struct put *u, uint64_t bytes)
{
    struct lane_ucx *l = put_peer(u)->ucx;
    struct post *post = calloc(1, sizeof(*post));

    if (post == NULL) {
        peer_fail(put_peer(u), PEER_FAILED, ST_UNAVAILABLE, "no memory for a request");
        return NULL;
    }
    post->put = u;
    post->bytes = bytes;
    l->window_bytes += bytes;
    l->window_requests++;
    put_request_began(u);
    return post;
}

static void request_ended(struct post *post, ucs_status_t status)
{
    struct put *u = post->put;
    struct lane_ucx *l = put_peer(u)->ucx;

    l->window_bytes -= post->bytes;
    l->window_requests--;
    free(post->scratch);
    free(post);
    put_request_ended(u, status == UCS_OK ? NULL : ucs_status_string(status));
}

static void on_request(void *request, ucs_status_t status, void *arg)
{
    ucp_request_free(request);
    request_ended(arg, status);
}

/* Accounts for what UCX returned: a request under way, an end at once, or an error. */
static void posted(struct post *post, ucs_status_ptr_t ret)
{
    struct transfer_peer *p = put_peer(post->put);

    if (UCS_PTR_IS_PTR(ret))
        return; /* on_request() follows */
    request_ended(post, UCS_PTR_STATUS(ret));
    if (UCS_PTR_IS_ERR(ret))
        peer_fail(p, PEER_FAILED, ST_UNAVAILABLE, ucs_status_string(UCS_PTR_STATUS(ret)));
}

static void post_put(struct put *u, const struct chunk *c)
{
    struct transfer_peer *p = put_peer(u);
    struct post *post = post_new(u, c->bytes);
    ucp_request_param_t param = {.op_attr_mask =
                                     UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA,
                                 .cb.send = on_request,
                                 .user_data = post};

    if (post == NULL) {
        free(c->scratch);
        return;
    }
    post->scratch = c->scratch;
    if (c->scratch == NULL) {
        param.op_attr_mask |= UCP_OP_ATTR_FIELD_MEMH;
        param.memh = p->t->slabs[c->slab].memh;
    }
    posted(post,
           ucp_put_nbx(p->ucx->ep, c->scratch != NULL ? c->scratch : c->from, c->bytes,
                       p->slabs[c->slab].base + c->remote_off, p->ucx->rkeys[c->slab], &param));
}

/* Memory of the same machine: one pass reads, sums and writes, where UCX would copy after us. */
static void copy_mapped(uint8_t *to, const struct chunk *c)
{
    if (c->scratch == NULL) {
        *c->crc = crc32c_copy(*c->crc, to, c->from, c->bytes);
        return;
    }
    *c->crc = crc32c(*c->crc, c->from, c->bytes);
    memcpy(to, c->scratch, c->bytes);
    free(c->scratch);
}

static void ucx_turn(struct put *u)
{
    struct lane_ucx *l = put_peer(u)->ucx;
    struct chunk c;

    for (uint64_t had = 0; had < PUT_QUANTUM && put_is_sending(u) && ucx_has_room(put_peer(u)) &&
                           put_next(u, PUT_QUANTUM, &c);
         had += c.bytes) {
        if (l->mapped[c.slab] != NULL) {
            copy_mapped(l->mapped[c.slab] + c.remote_off, &c);
        } else {
            *c.crc = crc32c(*c.crc, c.from, c.bytes);
            post_put(u, &c);
        }
    }
    crc32c_copy_end();
}

static void ucx_flush(struct put *u)
{
    struct post *post = post_new(u, 0);
    ucp_request_param_t param = {.op_attr_mask =
                                     UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA,
                                 .cb.send = on_request,
                                 .user_data = post};

    if (post != NULL)
        posted(post, ucp_ep_flush_nbx(put_peer(u)->ucx->ep, &param));
}

/* By force: outstanding requests end with an error, nothing more is written. */
static void ucx_close(struct transfer_peer *p)
{
    ucp_request_param_t param = {.op_attr_mask = UCP_OP_ATTR_FIELD_FLAGS,
                                 .flags = UCP_EP_CLOSE_FLAG_FORCE};
    struct lane_ucx *l = p->ucx;
    void *req;

    if (l->ep == NULL)
        return;
    req = ucp_ep_close_nbx(l->ep, &param);
    l->ep = NULL;
    if (UCS_PTR_IS_ERR(req))
        log_error("transfer: peer %s: endpoint does not close: %s", p->name,
                  ucs_status_string(UCS_PTR_STATUS(req)));
    else
        l->close_req = req;
}

static int ucx_tend(struct transfer_peer *p)
{
    struct lane_ucx *l = p->ucx;

    if (l->error_seen && p->state == PEER_OPEN)
        peer_fail(p, PEER_FAILED, ST_UNAVAILABLE, ucs_status_string(l->error));
    if (l->ep != NULL)
        return l->window_requests > 0 ? PENDING_MS : LANE_FOREVER;
    if (l->close_req != NULL) {
        if (ucp_request_check_status(l->close_req) == UCS_INPROGRESS)
            return CLOSING_MS;
        ucp_request_free(l->close_req);
        l->close_req = NULL;
    }
    return l->window_requests > 0 ? CLOSING_MS : LANE_GONE;
}

static void ucx_describe(struct transfer_peer *p, char *buf, size_t n)
{
    transport_read_back(p->ucx->ep, buf, n);
}

static void ucx_free(struct transfer_peer *p)
{
    for (int i = 0; i < DESCRIPTOR_SLABS; i++)
        if (p->ucx->rkeys[i] != NULL)
            ucp_rkey_destroy(p->ucx->rkeys[i]);
    free(p->ucx);
}

static const struct lane_ops lane_ucx = {
    .has_room = ucx_has_room,
    .turn = ucx_turn,
    .flush = ucx_flush,
    .close = ucx_close,
    .tend = ucx_tend,
    .describe = ucx_describe,
    .free = ucx_free,
};

static enum status_code unpack_keys(struct lane_ucx *l, const struct descriptor *d,
                                    struct status *st)
{
    for (int i = 0; i < DESCRIPTOR_SLABS; i++) {
        ucs_status_t rc;

        if (d->slabs[i].bytes == 0)
            continue;
        rc = ucp_ep_rkey_unpack(l->ep, d->slabs[i].rkey, &l->rkeys[i]);
        if (rc != UCS_OK)
            return status_set(st, ST_UNAVAILABLE, "remote key of slab %d: %s", i,
                              ucs_status_string(rc));
    }
    return status_ok(st);
}

/* Shared memory can be had as a pointer. Its pages are mapped now, large ones where the kernel
 * gives them, so that no put pays for faults. */
static void map_slabs(struct lane_ucx *l, const struct descriptor *d)
{
    for (int i = 0; i < DESCRIPTOR_SLABS; i++) {
        void *first, *last;

        if (l->rkeys[i] == NULL || ucp_rkey_ptr(l->rkeys[i], d->slabs[i].base, &first) != UCS_OK ||
            ucp_rkey_ptr(l->rkeys[i], d->slabs[i].base + d->slabs[i].bytes - 1, &last) != UCS_OK ||
            (uint64_t)((char *)last - (char *)first) != d->slabs[i].bytes - 1)
            continue;
        l->mapped[i] = first;
        if (d->slabs[i].bytes <= MAP_AHEAD_BYTES)
            slab_advise(first, d->slabs[i].bytes);
    }
}

/* Ends an endpoint that nobody has used. Its progress cannot involve our callbacks. */
static void abandon(struct transfer_peer *p)
{
    ucx_close(p);
    while (p->ucx->close_req != NULL &&
           ucp_request_check_status(p->ucx->close_req) == UCS_INPROGRESS)
        (void)ucp_worker_progress(p->t->worker);
    if (p->ucx->close_req != NULL)
        ucp_request_free(p->ucx->close_req);
    ucx_free(p);
    p->ucx = NULL;
}

enum status_code lane_ucx_open(struct transfer_peer *p, const struct descriptor *d,
                               struct status *st)
{
    struct lane_ucx *l = calloc(1, sizeof(*l));
    ucp_ep_params_t params = {
        .field_mask = UCP_EP_PARAM_FIELD_REMOTE_ADDRESS | UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE |
                      UCP_EP_PARAM_FIELD_ERR_HANDLER,
        .address = d->address,
        .err_mode = UCP_ERR_HANDLING_MODE_PEER,
        .err_handler = {on_error, l},
    };
    ucs_status_t rc;

    if (l == NULL)
        return status_set(st, ST_EXHAUSTED, "no memory for a peer");
    rc = ucp_ep_create(p->t->worker, &params, &l->ep);
    if (rc != UCS_OK) {
        free(l);
        return status_set(st, ST_UNAVAILABLE, "UCX has no way there by %s: %s", p->t->plan.tls,
                          ucs_status_string(rc));
    }
    p->ucx = l;
    if (unpack_keys(l, d, st) != ST_OK) {
        abandon(p);
        return st->code;
    }
    map_slabs(l, d);
    p->lane = &lane_ucx;
    return status_ok(st);
}
