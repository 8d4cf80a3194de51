/*
 * effort_profile: which release's reasoning-effort prefixes a checkpoint folder wants
 * (tests/data/text/ENCODING.md, section 0).
 *
 * Threads   start-up only.
 */
#ifndef BATON_ROUTER_EFFORT_PROFILE_H
#define BATON_ROUTER_EFFORT_PROFILE_H

#include "common/text/chat.h"

/**
 * @param choice  "preview", "ga", or "auto": read from encoding/encoding_dsv4.py beside the
 * tokenizer (as text; never run), ga when there is none
 * @param path    tokenizer.json or its folder
 * @param why     out, [256]: how it was found, for the log
 * @return ST_OK; ST_INVALID when the folder holds another prompt format
 */
enum status_code effort_profile_find(const char *choice, const char *path, enum chat_profile *out,
                                     char *why, struct status *st);

#endif
