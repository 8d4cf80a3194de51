/* rows_levels: which backends test_rows.c and test_dense.c hold to kernels/ref. */
#ifndef BATON_TESTS_UNIT_KERNELS_ROWS_LEVELS_H
#define BATON_TESTS_UNIT_KERNELS_ROWS_LEVELS_H

#include "tests/lib/kernel_rig.h"

extern const int rows_n_levels;
/* The first so many of them compute what test_rows.c looks at, each in its own way. */
extern const int rows_n_row_levels;

enum { ROWS_LONGEST = 1100 };
/* Tokens of the longest sequence: an emulated GPU is slow. */
extern const int rows_longest;

/** First of all. @return false: none of them can be opened here; why is printed */
bool rows_ready(void);

/** Opens one; rows_close() ends it. @return false: not here; the test has printed why */
bool rows_open(int level, struct rig *r, const struct kernel_dims *dims, int n_threads);
/** The same with weights used as mapped, where the backend can. */
bool rows_open_mapped(int level, struct rig *r, const struct kernel_dims *dims, int n_threads);
void rows_close(struct rig *r);

/* Matrices have multiples of that many columns; products are of that many tokens, at most. */
extern const int rows_cols_unit, rows_tokens;

/* Whether all levels give the same bits. */
extern const bool rows_alike;

enum { ROWS_TOKENS_MAX = 200 };
/** A row of act_quant() as bf16. out [n] */
void rows_decode(uint16_t *out, const void *row, int n);

#endif
