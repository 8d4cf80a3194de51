#include "router/ids.h"

#include <stdint.h>
#include <string.h>
#include <sys/random.h>

#include "common/base/clock.h"

/* Random bytes of the thread, fetched for many ids at once: a system call each costs more than they
 * do. Up to 256 of them come without an interruption. */
struct stock {
    size_t left;
    uint8_t bytes[256];
};

static uint8_t next_byte(struct stock *s)
{
    if (s->left == 0) {
        s->left = sizeof(s->bytes);
        if (getrandom(s->bytes, s->left, 0) != (ssize_t)s->left)
            for (size_t i = 0; i < s->left; i++) /* never seen; unlikely ids, not secret ones */
                s->bytes[i] = (uint8_t)(clock_now_ns() >> (i % 4) * 3);
    }
    return s->bytes[--s->left];
}

static struct stock *stock_of_thread(void)
{
    static _Thread_local struct stock stock;

    return &stock;
}

void ids_random(char *out, size_t n)
{
    static const char letters[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789";
    struct stock *stock = stock_of_thread();

    for (size_t i = 0; i < n; i++)
        out[i] = letters[next_byte(stock) % (sizeof(letters) - 1)];
    out[n] = '\0';
}

uint64_t ids_seed(void)
{
    uint64_t seed = 0;

    for (size_t i = 0; i < sizeof(seed); i++)
        seed = seed << 8 | next_byte(stock_of_thread());
    return seed;
}

void ids_call(char *out)
{
    memcpy(out, "call_", 5);
    ids_random(out + 5, 24);
}
