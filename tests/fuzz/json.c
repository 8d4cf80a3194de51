/* Fuzzes the JSON reader: any bytes are refused or read; what was read and written again reads to
 * the same text; a stricter reading never takes what a laxer one refuses. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/json.h"
#include "common/base/utf8.h"
#include "common/text/chat_json.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static struct json_doc *read_json(const char *text, size_t len, unsigned flags)
{
    struct json_doc *doc = NULL;
    struct status st;

    if (json_parse(text, len, flags, &doc, &st) == ST_OK)
        return doc;
    if (st.code != ST_INVALID || utf8_valid_prefix(st.msg, strlen(st.msg)) != strlen(st.msg))
        abort();
    return NULL;
}

/* Every number and string of a flat list goes through the helpers. */
static void touch(const struct json *v)
{
    int64_t whole;
    double d;

    if (json_int(v, &whole) && (!json_double(v, &d) || d != (double)whole))
        abort();
    if (v->type == JSON_ARRAY)
        for (uint32_t i = 0; i < v->len; i++)
            if (json_int(&v->items[i], &whole) &&
                (!json_double(&v->items[i], &d) || d != (double)whole))
                abort();
    json_get(v, "a");
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const unsigned lax = JSON_ALLOW_NAN | JSON_LAST_KEY_WINS | JSON_LONE_SURROGATES;
    char *text = malloc(size + 1); /* exactly as long as said */
    struct json_doc *doc, *strict, *again;

    memcpy(text, data, size);
    text = realloc(text, size > 0 ? size : 1);
    doc = read_json(text, size, lax);
    strict = read_json(text, size, 0);
    if (strict != NULL && doc == NULL)
        abort();
    if (doc != NULL) {
        touch(json_root(doc));
        if (!json_lone_surrogates(doc)) {
            struct buf first = {0}, second = {0};

            chat_json_write(&first, json_root(doc));
            again = read_json(first.data, first.len, JSON_ALLOW_NAN);
            if (again == NULL)
                abort();
            chat_json_write(&second, json_root(again));
            if (first.len != second.len || memcmp(first.data, second.data, first.len) != 0)
                abort();
            json_free(again);
            buf_deinit(&first);
            buf_deinit(&second);
        }
    }
    json_free(doc);
    json_free(strict);
    free(text);
    return 0;
}
