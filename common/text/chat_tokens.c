#include "common/text/chat_tokens.h"

#define TOKEN(text, id)                                                                            \
    {                                                                                              \
        text, sizeof(text) - 1, id                                                                 \
    }

const struct chat_token_info chat_tokens[CHAT_N_TOKENS] = {
    [CHAT_BOS] = TOKEN("<｜begin▁of▁sentence｜>", 0),
    [CHAT_EOS] = TOKEN("<｜end▁of▁sentence｜>", 1),
    [CHAT_USER] = TOKEN("<｜User｜>", 128803),
    [CHAT_ASSISTANT] = TOKEN("<｜Assistant｜>", 128804),
    [CHAT_THINK] = TOKEN("<think>", 128821),
    [CHAT_THINK_END] = TOKEN("</think>", 128822),
    [CHAT_DSML] = TOKEN("｜DSML｜", 128825),
    [CHAT_REMINDER] = TOKEN("<｜latest_reminder｜>", 128828),
    [CHAT_TASK_ACTION] = TOKEN("<｜action｜>", 128829),
    [CHAT_TASK_QUERY] = TOKEN("<｜query｜>", 128830),
    [CHAT_TASK_AUTHORITY] = TOKEN("<｜authority｜>", 128831),
    [CHAT_TASK_DOMAIN] = TOKEN("<｜domain｜>", 128832),
    [CHAT_TASK_TITLE] = TOKEN("<｜title｜>", 128836),
    [CHAT_TASK_READ_URL] = TOKEN("<｜read_url｜>", 128845),
};
