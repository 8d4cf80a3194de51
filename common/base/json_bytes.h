/*
 * json_bytes: which bytes of a JSON string need a second look, eight at a time. Internal to
 * common/base.
 */
#ifndef BATON_COMMON_BASE_JSON_BYTES_H
#define BATON_COMMON_BASE_JSON_BYTES_H

#include <stdbool.h>
#include <stdint.h>

#define JSON_ONES UINT64_C(0x0101010101010101)
#define JSON_HIGH UINT64_C(0x8080808080808080)

/* Non-zero when one of the eight bytes is '"', '\', below 0x20, or (ascii_only) above 0x7f. Exact
 * as a yes/no answer; which byte it was is found by looking. */
static inline uint64_t json_special_bytes(uint64_t w, bool ascii_only)
{
    uint64_t quote = w ^ (JSON_ONES * '"'), slash = w ^ (JSON_ONES * '\\');
    uint64_t hit = ((quote - JSON_ONES) & ~quote) | ((slash - JSON_ONES) & ~slash) |
                   ((w - JSON_ONES * 0x20) & ~w);

    return (ascii_only ? hit | w : hit) & JSON_HIGH;
}

#endif
