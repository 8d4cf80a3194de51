/* Fuzzes the reading of chat-completion fields: any JSON is taken or refused by name, with 400. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "router/chat_params.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct chat_error err = {0};
    struct chat_params p;
    struct json_doc *doc;
    struct status st;

    if (json_parse((const char *)data, size, CHAT_JSON_FLAGS, &doc, &st) != ST_OK)
        return 0;
    if (!chat_params_read(json_root(doc), 1000, &p, &err)) {
        if (err.status != 400 || err.code == NULL || err.message[0] == '\0')
            abort();
    } else if (p.n < 1 || p.n > CHAT_CHOICES_MAX || p.n_stop > STOP_STRINGS_MAX ||
               p.n_stop_ids > GENERATION_STOP_IDS_MAX || !(p.temperature >= 0) || !(p.top_p > 0)) {
        abort();
    }
    json_free(doc);
    return 0;
}
