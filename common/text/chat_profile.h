/*
 * chat_profile: which release of the chat format a checkpoint was trained on. config.json does not
 * say it; the encoder that ships in the checkpoint folder does, and is read as text, never run
 * (tests/data/text/ENCODING.md, section 0).
 *
 * Threads   start-up only.
 */
#ifndef BATON_COMMON_TEXT_CHAT_PROFILE_H
#define BATON_COMMON_TEXT_CHAT_PROFILE_H

#include "common/text/chat.h"

/** "preview" or "ga". */
const char *chat_profile_name(enum chat_profile profile);

/**
 * @param choice  "preview" or "ga", which is taken without a look; or "auto": what
 *                encoding/encoding_dsv4.py says, ga when there is none
 * @param path    the checkpoint folder, or the tokenizer.json in it
 * @param why     out: how it was found, for the log; static
 * @return ST_OK; ST_INVALID for a checkpoint of another format (DeepSeek-V4.1 by name, any other
 *         encoder beside) and for an encoder that is neither release; ST_UNAVAILABLE when a file is
 *         there but cannot be read
 */
enum status_code chat_profile_find(const char *choice, const char *path, enum chat_profile *out,
                                   const char **why, struct status *st);

#endif
