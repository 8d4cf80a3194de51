#include "router/ids.h"

#include <stdint.h>
#include <string.h>
#include <sys/random.h>

#include "common/base/clock.h"

void ids_random(char *out, size_t n)
{
    static const char letters[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789";
    uint8_t bytes[64];

    if (getrandom(bytes, n, 0) != (ssize_t)n) /* never seen; unlikely ids then, not secret ones */
        for (size_t i = 0; i < n; i++)
            bytes[i] = (uint8_t)(clock_now_ns() >> (i % 4) * 3);
    for (size_t i = 0; i < n; i++)
        out[i] = letters[bytes[i] % (sizeof(letters) - 1)];
    out[n] = '\0';
}

void ids_call(char *out)
{
    memcpy(out, "call_", 5);
    ids_random(out + 5, 24);
}
