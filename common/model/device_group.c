#include "common/model/device_group.h"

#include <pthread.h>
#include <string.h>

#include "common/comm/comm_nccl.h"

/* For rows that are gathered by columns, at least; one row of all logits has to fit. */
enum { SCRATCH_BYTES = 16 << 20 };

/* ---- what a rank's GPU does for the group ---- */

static void enter(void *arg)
{
    struct kernels *k = &((struct rank *)arg)->kernels;

    k->ops->stream(k);
}

static void columns(void *arg, struct dev_ptr out, struct dev_ptr in, int n_ranks, size_t n_rows,
                    size_t row_bytes)
{
    struct kernels *k = &((struct rank *)arg)->kernels;

    k->ops->dev_columns(k, out, in, n_ranks, n_rows, row_bytes);
}

static void mark(void *arg, uint64_t n)
{
    struct kernels *k = &((struct rank *)arg)->kernels;

    k->ops->mark(k, n);
}

static uint64_t reached(void *arg)
{
    struct kernels *k = &((struct rank *)arg)->kernels;

    return k->ops->marked(k);
}

/* ---- meeting ---- */

struct seat {
    struct rank *rank;
    const struct comm_options *opt;
    const char *library;
    const uint8_t *id;
    struct comm *comm; /* out */
    struct status st;  /* out */
};

/* All ranks have to be in it at once. */
static void *join(void *arg)
{
    struct seat *s = arg;
    struct kernels *k = &s->rank->kernels;
    size_t row = (size_t)s->rank->config->vocab_size * sizeof(float);
    struct comm_nccl_device device = {
        .stream = k->ops->stream(k),
        .scratch_bytes = row > SCRATCH_BYTES ? row : SCRATCH_BYTES,
        .enter = enter,
        .columns = columns,
        .mark = mark,
        .reached = reached,
        .arg = s->rank,
    };

    device.scratch = k->ops->dev_alloc(k, device.scratch_bytes); /* goes with the device */
    if (dev_is_null(device.scratch))
        status_set(&s->st, ST_EXHAUSTED, "no memory for %zu bytes of a rank group's",
                   device.scratch_bytes);
    else
        comm_nccl_new(s->opt, s->library, s->id, s->rank->shard.rank, &device, &s->comm, &s->st);
    return NULL;
}

enum status_code device_group_new(struct rank *ranks, const struct comm_options *opt,
                                  const char *library, struct comm **comms, struct status *st)
{
    uint8_t id[COMM_NCCL_ID_BYTES];
    struct seat seats[COMM_RANKS_MAX];
    pthread_t threads[COMM_RANKS_MAX];
    int n = 0;

    if (comm_nccl_id(library, id, st) != ST_OK)
        return st->code;
    for (; n < opt->n_ranks && st->code == ST_OK; n++) {
        seats[n] = (struct seat){&ranks[n], opt, library, id, NULL, {0}};
        if (pthread_create(&threads[n], NULL, join, &seats[n]) != 0) {
            status_set(st, ST_EXHAUSTED, "cannot start the thread of rank %d (ulimit -u)", n);
            break; /* those that have come wait for opt->init_ms */
        }
    }
    for (int r = 0; r < n; r++) {
        pthread_join(threads[r], NULL);
        if (st->code == ST_OK && seats[r].st.code != ST_OK)
            *st = seats[r].st;
    }
    for (int r = 0; r < n; r++)
        if (st->code == ST_OK)
            comms[r] = seats[r].comm;
        else
            comm_free(seats[r].comm);
    return st->code;
}
