/* Fuzzes the SSE writer: whatever text the model makes, an event is one line that holds it, as
 * JSON. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/json.h"
#include "common/base/utf8.h"
#include "router/api_error.h"
#include "router/chat_sse.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check(const struct buf *out, const char *text, size_t len)
{
    const struct json *choice, *content;
    struct json_doc *doc;
    struct status st;

    if (out->len < 8 || memcmp(out->data, "data: ", 6) != 0 ||
        memchr(out->data, '\n', out->len) != out->data + out->len - 2 ||
        memchr(out->data, '\r', out->len) != NULL ||
        json_parse(out->data + 6, out->len - 8, 0, &doc, &st) != ST_OK)
        abort();
    choice = &json_get(json_root(doc), "choices")->items[0];
    content = json_get(json_get(choice, "delta"), "content");
    if (content->len != len || memcmp(content->text, text, len) != 0)
        abort();
    json_free(doc);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const char *text = (const char *)data;
    struct buf out = {0}, copy = {0};
    struct json_doc *doc;
    struct chat_sse s = {0};
    struct status st;
    size_t n = utf8_valid_prefix(text, size);

    chat_sse_init(&s, "chat.completion.chunk", "chatcmpl-x", 1, "model");
    chat_sse_text(&s, 0, "content", text, n, NULL, &out);
    check(&out, text, n);
    chat_sse_deinit(&s);
    /* Error messages may hold anything. */
    out.len = 0;
    buf_append(&copy, data, size);
    api_error_json(&out, 400, "x", NULL, buf_cstr(&copy));
    if (json_parse(out.data, out.len, 0, &doc, &st) != ST_OK)
        abort();
    json_free(doc);
    out.len = 0;
    api_error_anthropic_json(&out, 400, buf_cstr(&copy), buf_cstr(&copy));
    if (json_parse(out.data, out.len, 0, &doc, &st) != ST_OK)
        abort();
    json_free(doc);
    buf_deinit(&copy);
    buf_deinit(&out);
    return 0;
}
