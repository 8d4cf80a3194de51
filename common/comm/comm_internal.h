/* comm_internal: what a backend of comm fills. */
#ifndef BATON_COMMON_COMM_COMM_INTERNAL_H
#define BATON_COMMON_COMM_COMM_INTERNAL_H

#include "common/comm/comm.h"

/* One function per collective of comm.h, same arguments, same meaning. */
struct comm_ops {
    const char *name;
    void (*free)(struct comm *c);
    void (*attach)(struct comm *c);
    void (*beat)(struct comm *c);
    void (*fail)(struct comm *c, const char *reason);
    enum status_code (*check)(struct comm *c, struct status *st);
    void (*barrier)(struct comm *c);
    void (*all_reduce)(struct comm *c, struct dev_ptr buf, size_t n, enum comm_type type);
    void (*all_gather_columns)(struct comm *c, struct dev_ptr out, struct dev_ptr in, size_t n_rows,
                               size_t row_bytes);
    void (*reduce_scatter)(struct comm *c, struct dev_ptr out, struct dev_ptr in, size_t n,
                           enum comm_type type);
    void (*all_to_all)(struct comm *c, struct dev_ptr out, struct dev_ptr in, size_t bytes);
};

struct comm {
    const struct comm_ops *ops;
    int rank, n_ranks;
    void *self; /* the backend's */
};

#endif
