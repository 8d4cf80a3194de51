#include "common/rpc/rpc_health.h"

#include <pthread.h>
#include <stdlib.h>

#include "common/rpc/rpc_message.h"
#include "grpc/health/v1/health.pb-c.h"

struct watcher {
    struct watcher *next;
    struct rpc_health *health;
    struct rpc_session *session; /* borrowed: alive until on_close */
    bool asked;                  /* its request has come */
};

struct rpc_health {
    pthread_mutex_t lock; /* guards all; held while a reply is queued */
    bool serving;
    struct watcher *watchers;
};

static Grpc__Health__V1__HealthCheckResponse response(const struct rpc_health *h)
{
    Grpc__Health__V1__HealthCheckResponse r = GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__INIT;

    r.status = h->serving ? GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__SERVING_STATUS__SERVING
                          : GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__SERVING_STATUS__NOT_SERVING;
    return r;
}

static enum status_code check(void *arg, const void *request, size_t len, void **reply,
                              size_t *reply_len, struct status *st)
{
    struct rpc_health *h = arg;
    Grpc__Health__V1__HealthCheckResponse r;

    (void)request;
    (void)len;
    pthread_mutex_lock(&h->lock);
    r = response(h);
    pthread_mutex_unlock(&h->lock);
    return rpc_message_pack(&r.base, reply, reply_len, st);
}

static void *watch_open(void *arg, struct rpc_session *s, struct status *st)
{
    struct rpc_health *h = arg;
    struct watcher *w = calloc(1, sizeof(*w));

    if (w == NULL) {
        status_set(st, ST_EXHAUSTED, "no memory for a watcher");
        return NULL;
    }
    w->health = h;
    w->session = s;
    pthread_mutex_lock(&h->lock);
    w->next = h->watchers;
    h->watchers = w;
    pthread_mutex_unlock(&h->lock);
    return w;
}

/* The lock is held. */
static void tell(struct watcher *w)
{
    Grpc__Health__V1__HealthCheckResponse r = response(w->health);
    struct status st;

    rpc_session_send_message(w->session, &r.base, &st); /* a watcher that is gone needs no word */
}

static void watch_message(void *arg, struct rpc_session *s, const void *data, size_t len)
{
    struct watcher *w = arg;

    (void)s;
    (void)data;
    (void)len;
    pthread_mutex_lock(&w->health->lock);
    w->asked = true;
    tell(w);
    pthread_mutex_unlock(&w->health->lock);
}

static void watch_close(void *arg, struct rpc_session *s, const struct status *why)
{
    struct watcher *w = arg;
    struct rpc_health *h = w->health;

    (void)s;
    (void)why;
    pthread_mutex_lock(&h->lock);
    for (struct watcher **p = &h->watchers; *p != NULL; p = &(*p)->next)
        if (*p == w) {
            *p = w->next;
            break;
        }
    pthread_mutex_unlock(&h->lock);
    free(w);
}

struct rpc_health *rpc_health_new(struct rpc_method *methods)
{
    struct rpc_health *h = calloc(1, sizeof(*h));

    if (h == NULL)
        abort();
    pthread_mutex_init(&h->lock, NULL);
    methods[0] =
        (struct rpc_method){.path = "/grpc.health.v1.Health/Check", .unary = check, .arg = h};
    methods[1] = (struct rpc_method){
        .path = "/grpc.health.v1.Health/Watch",
        .on_open = watch_open,
        .callbacks = {watch_message, watch_close},
        .arg = h,
    };
    return h;
}

void rpc_health_free(struct rpc_health *h)
{
    if (h == NULL)
        return;
    pthread_mutex_destroy(&h->lock);
    free(h);
}

void rpc_health_set(struct rpc_health *h, bool serving)
{
    pthread_mutex_lock(&h->lock);
    h->serving = serving;
    for (struct watcher *w = h->watchers; w != NULL; w = w->next)
        if (w->asked)
            tell(w);
    pthread_mutex_unlock(&h->lock);
}
