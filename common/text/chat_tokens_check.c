#include "common/text/chat_tokens.h"
#include "common/text/tokenizer.h"

enum status_code chat_tokens_check(const struct tokenizer *t, struct status *st)
{
    for (int i = 0; i < CHAT_N_TOKENS; i++) {
        int32_t id = tokenizer_added_id(t, chat_tokens[i].text, chat_tokens[i].len);

        if (id != chat_tokens[i].id)
            return status_set(st, ST_INVALID,
                              "token %s has id %d in the tokenizer, DeepSeek-V4's chat format has "
                              "%d: this is another model's tokenizer",
                              chat_tokens[i].text, (int)id, (int)chat_tokens[i].id);
    }
    return status_ok(st);
}
