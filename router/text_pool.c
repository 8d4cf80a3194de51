#include "router/text_pool.h"

#include <pthread.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Large texts give way to the loops where cores are few: a loop's work is short and others wait. */
enum { TEXT_NICE = 10 };

struct text_pool {
    pthread_mutex_t
        lock; /* guards all fields below; never held with another lock but a mailbox's */
    pthread_cond_t changed;
    struct msg *head, *tail;
    size_t n_waiting, queue_max;
    bool stopping;
    size_t words_bytes; /* of each thread's word cache */
    int n_threads;
    pthread_t threads[];
};

static struct text_work *take(struct text_pool *p)
{
    struct msg *m;

    pthread_mutex_lock(&p->lock);
    while (p->head == NULL && !p->stopping)
        pthread_cond_wait(&p->changed, &p->lock);
    m = p->stopping ? NULL : p->head;
    if (m != NULL) {
        p->head = m->next;
        p->n_waiting--;
    }
    pthread_mutex_unlock(&p->lock);
    return (struct text_work *)m;
}

static void *run(void *arg)
{
    struct text_pool *p = arg;
    pid_t tid = (pid_t)syscall(SYS_gettid); /* on Linux a nice value is a thread's own */
    struct text_scratch scratch = {0};
    struct text_work *w;
    struct status st;

    (void)setpriority(PRIO_PROCESS, (id_t)tid, TEXT_NICE); /* refused: as before */
    if (tokenizer_cache_new(p->words_bytes, &scratch.cache, &st) != ST_OK)
        scratch.cache = NULL; /* slower, not wrong */
    while ((w = take(p)) != NULL) {
        w->run(w, &scratch);
        w->ran = true;
        mailbox_push(w->mailbox, &w->base);
    }
    tokenizer_cache_free(scratch.cache);
    text_scratch_deinit(&scratch);
    return NULL;
}

enum status_code text_pool_start(int n_threads, size_t queue_max, size_t words_bytes,
                                 struct text_pool **out, struct status *st)
{
    struct text_pool *p = calloc(1, sizeof(*p) + (size_t)n_threads * sizeof(p->threads[0]));

    if (p == NULL)
        return status_set(st, ST_EXHAUSTED, "no memory for the text threads");
    pthread_mutex_init(&p->lock, NULL);
    pthread_cond_init(&p->changed, NULL);
    p->queue_max = queue_max;
    p->words_bytes = words_bytes;
    for (; p->n_threads < n_threads; p->n_threads++)
        if (pthread_create(&p->threads[p->n_threads], NULL, run, p) != 0) {
            text_pool_stop(p);
            return status_set(st, ST_EXHAUSTED, "cannot start %d text threads", n_threads);
        }
    *out = p;
    return status_ok(st);
}

enum status_code text_pool_submit(struct text_pool *p, struct text_work *w, struct status *st)
{
    status_ok(st);
    w->ran = false;
    w->base.next = NULL;
    pthread_mutex_lock(&p->lock);
    if (p->n_waiting >= p->queue_max) {
        status_set(st, ST_EXHAUSTED, "%zu large requests wait to be read, the limit", p->n_waiting);
    } else {
        *(p->head == NULL ? &p->head : &p->tail->next) = &w->base;
        p->tail = &w->base;
        p->n_waiting++;
        pthread_cond_signal(&p->changed);
    }
    pthread_mutex_unlock(&p->lock);
    return st->code;
}

void text_pool_stop(struct text_pool *p)
{
    struct msg *m, *next;

    if (p == NULL)
        return;
    pthread_mutex_lock(&p->lock);
    p->stopping = true;
    pthread_cond_broadcast(&p->changed);
    pthread_mutex_unlock(&p->lock);
    for (int i = 0; i < p->n_threads; i++)
        pthread_join(p->threads[i], NULL);
    for (m = p->head; m != NULL; m = next) {
        next = m->next;
        mailbox_push(((struct text_work *)m)->mailbox, m);
    }
    pthread_cond_destroy(&p->changed);
    pthread_mutex_destroy(&p->lock);
    free(p);
}
