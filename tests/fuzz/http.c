/* Fuzzes the HTTP parser: any bytes, cut in any way, give the same requests and the same verdict.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "router/http_parser.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Runs the bytes through in pieces that the seed chooses; returns a hash of all that came out. */
static uint64_t digest(const uint8_t *data, size_t size, unsigned seed)
{
    static const struct http_limits limits = {.head_bytes_max = 2048, .body_bytes_max = 4096};
    struct http_parser p;
    uint64_t h = 14695981039346656037ull;
    size_t at = 0;
    int going = 1;

    http_parser_init(&p, &limits);
    while (going) {
        size_t n = size - at, used;
        enum http_event ev;
        char *piece;

        if (seed != 0 && n > 0) {
            seed = seed * 1103515245u + 12345u;
            n = 1 + (seed >> 16) % (n < 9 ? n : 9);
        }
        piece = malloc(n + 1);
        memcpy(piece, data + at, n);
        ev = http_parser_feed(&p, piece, n, &used);
        free(piece);
        at += used;
        if (p.req.head.len > limits.head_bytes_max || p.req.body.len > limits.body_bytes_max)
            abort();
        if (ev == HTTP_BAD) {
            h = (h ^ (uint64_t)p.error_http) * 1099511628211ull;
            going = 0;
        } else if (ev == HTTP_DONE) {
            for (size_t i = 0; i < p.req.body.len; i++)
                h = (h ^ (uint8_t)p.req.body.data[i]) * 1099511628211ull;
            h = (h ^ p.req.path.len) * 1099511628211ull;
            h = (h ^ p.req.n_headers) * 1099511628211ull;
            http_parser_reset(&p);
        } else if (ev == HTTP_MORE && at == size) {
            going = 0;
        }
    }
    h = (h ^ at) * 1099511628211ull;
    http_parser_deinit(&p);
    return h;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    uint64_t whole = digest(data, size, 0);

    if (digest(data, size, 1) != whole || digest(data, size, 77) != whole)
        abort();
    return 0;
}
