/* Fuzzes the detokenizer: a stream of bytes (each as its token; 0xFE: the added token <s>) gives
 * whole characters only, holds at most three bytes, and all pieces together are the whole decoded.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/utf8.h"
#include "common/text/tokenizer_impl.h"
#include "common/text/tokenizer_json.h"
#include "tests/lib/toy_tokenizer.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static struct tokenizer toy;

static void start(void)
{
    struct buf b = {0};
    struct status st;

    toy_tokenizer_json(&b, &(struct toy_tokenizer){.version = NULL});
    if (tokenizer_json_read(b.data, b.len, &toy.image, &st) != ST_OK ||
        tokenizer_bind(&toy, &st) != ST_OK)
        abort();
    buf_deinit(&b);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct detokenizer d = {.n_held = 0};
    struct buf out = {0}, bytes = {0}, whole = {0};
    struct status st;

    if (toy.meta == NULL)
        start();
    for (size_t i = 0; i < size; i++) {
        size_t before = out.len;
        bool added = data[i] == 0xFE;
        if (detokenizer_push(&d, &toy, added ? 261 : data[i], &out, &st) != ST_OK)
            abort();
        if (d.n_held > 3 ||
            (out.len > before &&
             utf8_valid_prefix(out.data + before, out.len - before) != out.len - before))
            abort();
        if (added) { /* ends what was unfinished */
            utf8_append_lossy(&whole, bytes.data, bytes.len);
            buf_puts(&whole, "<s>");
            bytes.len = 0;
        } else {
            buf_append(&bytes, &data[i], 1);
        }
    }
    detokenizer_finish(&d, &out);
    utf8_append_lossy(&whole, bytes.data, bytes.len);
    if (out.len != whole.len || (out.len > 0 && memcmp(out.data, whole.data, out.len) != 0))
        abort();
    buf_deinit(&out);
    buf_deinit(&bytes);
    buf_deinit(&whole);
    return 0;
}
