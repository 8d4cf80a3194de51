/* Fuzzes the renderer: any JSON is refused with a complete error or becomes a prompt whose special
 * tokens ascend, spell themselves and open only where the renderer wrote them. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/utf8.h"
#include "common/text/chat.h"
#include "common/text/chat_tokens.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_prompt(const struct prompt *p)
{
    size_t end = 0;

    if (utf8_valid_prefix(p->text.data, p->text.len) != p->text.len)
        abort();
    if (p->n_specials == 0 || p->specials[0].offset != 0 || p->specials[0].id != 0)
        abort();
    for (size_t i = 0; i < p->n_specials; i++) {
        const struct prompt_special *s = &p->specials[i];
        int t = 0;

        while (t < CHAT_N_TOKENS && chat_tokens[t].id != s->id)
            t++;
        if (t == CHAT_N_TOKENS || s->offset < end || chat_tokens[t].len != s->len ||
            s->offset + s->len > p->text.len ||
            memcmp(p->text.data + s->offset, chat_tokens[t].text, s->len) != 0)
            abort();
        end = s->offset + s->len;
    }
}

static void check_error(const struct chat_error *err)
{
    if (err->status != 400 || err->code == NULL || err->message[0] == '\0' ||
        utf8_valid_prefix(err->message, strlen(err->message)) != strlen(err->message))
        abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct chat_prompt out = {0};
    struct json_doc *doc = NULL;
    struct chat_error err;
    struct status st;

    if (json_parse((const char *)data, size, JSON_ALLOW_NAN | JSON_LAST_KEY_WINS, &doc, &st) !=
        ST_OK)
        return 0;
    for (int i = 0; i < 4; i++) {
        struct chat_options opt = {.profile = i & 1 ? CHAT_GA : CHAT_PREVIEW,
                                   .default_thinking = (i & 2) != 0};

        memset(&err, 0, sizeof(err));
        if (chat_request_render(json_root(doc), &opt, &out, &err) == ST_OK)
            check_prompt(&out.prompt);
        else
            check_error(&err);
        memset(&err, 0, sizeof(err));
        if (chat_encode(json_root(doc), opt.profile, &out.prompt, &err) == ST_OK)
            check_prompt(&out.prompt);
        else
            check_error(&err);
    }
    chat_prompt_deinit(&out);
    json_free(doc);
    return 0;
}
