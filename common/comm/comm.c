#include "common/comm/comm.h"

#include "common/comm/comm_internal.h"

void comm_free(struct comm *c)
{
    if (c != NULL)
        c->ops->free(c);
}

int comm_rank(const struct comm *c)
{
    return c->rank;
}

int comm_n_ranks(const struct comm *c)
{
    return c->n_ranks;
}

const char *comm_name(const struct comm *c)
{
    return c->ops->name;
}

void comm_attach(struct comm *c)
{
    c->ops->attach(c);
}

void comm_beat(struct comm *c)
{
    c->ops->beat(c);
}

void comm_fail(struct comm *c, const char *reason)
{
    c->ops->fail(c, reason);
}

enum status_code comm_check(struct comm *c, struct status *st)
{
    return c->ops->check(c, st);
}

void comm_barrier(struct comm *c)
{
    c->ops->barrier(c);
}

void comm_all_reduce(struct comm *c, struct dev_ptr buf, size_t n, enum comm_type type)
{
    c->ops->all_reduce(c, buf, n, type);
}

void comm_all_gather(struct comm *c, struct dev_ptr out, struct dev_ptr in, size_t bytes)
{
    c->ops->all_gather_columns(c, out, in, 1, bytes);
}

void comm_all_gather_columns(struct comm *c, struct dev_ptr out, struct dev_ptr in, size_t n_rows,
                             size_t row_bytes)
{
    c->ops->all_gather_columns(c, out, in, n_rows, row_bytes);
}

void comm_reduce_scatter(struct comm *c, struct dev_ptr out, struct dev_ptr in, size_t n,
                         enum comm_type type)
{
    c->ops->reduce_scatter(c, out, in, n, type);
}

void comm_all_to_all(struct comm *c, struct dev_ptr out, struct dev_ptr in, size_t bytes)
{
    c->ops->all_to_all(c, out, in, bytes);
}
