/*
 * chat_profile: which release of the chat format a checkpoint was trained on. config.json does not
 * say it; the encoder that ships in the checkpoint folder does, and is read as text, never run.
 */
#ifndef BATON_COMMON_TEXT_CHAT_PROFILE_H
#define BATON_COMMON_TEXT_CHAT_PROFILE_H

#include <stdbool.h>

#include "common/text/chat.h"

/** "preview" or "ga". */
const char *chat_profile_name(enum chat_profile profile);

/**
 * Looks at dir/encoding/encoding_dsv4.py and dir/config.json.
 * @param found  out: false when there is no encoder to look at, and *profile is CHAT_GA by default;
 *               the caller logs which one was taken
 * @return ST_OK; ST_INVALID for a DeepSeek-V4.1 checkpoint, whose format is another one, and for an
 *         encoder that is neither release; ST_UNAVAILABLE when a file is there but cannot be read
 */
enum status_code chat_profile_detect(const char *dir, enum chat_profile *profile, bool *found,
                                     struct status *st);

#endif
