/*
 * clock: monotonic time for bounds and measurements.
 */
#ifndef BATON_COMMON_BASE_CLOCK_H
#define BATON_COMMON_BASE_CLOCK_H

#include <stdint.h>

/** Monotonic nanoseconds since an arbitrary start. */
uint64_t clock_now_ns(void);

/** The same in microseconds. */
uint64_t clock_now_us(void);

/** Seconds since 1970, for `created` fields. */
int64_t clock_unix_s(void);

#endif
