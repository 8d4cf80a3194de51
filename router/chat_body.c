#include "router/chat_body.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "router/fields.h"

enum { MESSAGE_MEMBERS_MAX = 5, ROOT_MEMBERS_MAX = 9 };

static void *take(struct json_doc *doc, size_t n)
{
    void *p = json_alloc(doc, n > 0 ? n : 1);

    if (p == NULL)
        abort();
    return p;
}

struct json chat_body_object(struct json_doc *doc, uint32_t members_max)
{
    return (struct json){.type = JSON_OBJECT,
                         .members = take(doc, members_max * sizeof(struct json_member))};
}

struct json chat_body_array(struct json_doc *doc, uint32_t items_max)
{
    return (struct json){.type = JSON_ARRAY, .items = take(doc, items_max * sizeof(struct json))};
}

struct json chat_body_string(const char *s)
{
    return (struct json){.type = JSON_STRING, .len = (uint32_t)strlen(s), .text = s};
}

struct json chat_body_true(void)
{
    return (struct json){.type = JSON_TRUE};
}

void chat_body_put(struct json *object, const char *key, struct json value)
{
    object->members[object->len++] =
        (struct json_member){.key = key, .key_len = (uint32_t)strlen(key), .value = value};
}

void chat_body_push(struct json *array, struct json value)
{
    array->items[array->len++] = value;
}

struct json chat_body_function(struct json_doc *doc, struct json function)
{
    struct json made = chat_body_object(doc, 2);

    chat_body_put(&made, "type", chat_body_string("function"));
    chat_body_put(&made, "function", function);
    return made;
}

struct json chat_body_choice(struct json_doc *doc, const struct json *name)
{
    struct json function = chat_body_object(doc, 1);

    chat_body_put(&function, "name", *name);
    return chat_body_function(doc, function);
}

struct json chat_body_call(struct json_doc *doc, const struct json *id, const struct json *name,
                           const struct json *arguments)
{
    struct json function = chat_body_object(doc, 2), call = chat_body_object(doc, 3);

    chat_body_put(&function, "name", *name);
    chat_body_put(&function, "arguments", *arguments);
    chat_body_put(&call, "id", *id);
    chat_body_put(&call, "type", chat_body_string("function"));
    chat_body_put(&call, "function", function);
    return call;
}

/* The text of an item that counts, or NULL. */
static const struct json *text_of(const struct json *item, const char *type, const char *key)
{
    const struct json *text = json_get(item, key);

    return json_is(json_get(item, "type"), type) && text != NULL && text->type == JSON_STRING
               ? text
               : NULL;
}

struct json chat_body_join(struct json_doc *doc, const struct json *list, const char *type,
                           const char *key)
{
    const struct json *text, *only = NULL;
    size_t n = 0, bytes = 0;
    struct json joined;
    char *out;

    for (uint32_t i = 0; list != NULL && list->type == JSON_ARRAY && i < list->len; i++) {
        text = text_of(&list->items[i], type, key);
        if (text == NULL)
            continue;
        only = text;
        bytes += text->len + 1u;
        n++;
    }
    if (n < 2)
        return only == NULL ? (struct json){.type = JSON_NULL} : *only;
    out = take(doc, bytes);
    joined = (struct json){.type = JSON_STRING, .len = (uint32_t)(bytes - 1), .text = out};
    for (uint32_t i = 0; i < list->len; i++) {
        text = text_of(&list->items[i], type, key);
        if (text == NULL)
            continue;
        memcpy(out, text->text, text->len);
        out += text->len;
        *out++ = '\n';
    }
    out[-1] = '\0';
    return joined;
}

void chat_body_init(struct chat_body *b, struct json_doc *doc, const char *list,
                    uint32_t messages_max, struct chat_error *err)
{
    *b = (struct chat_body){.doc = doc,
                            .root = chat_body_object(doc, ROOT_MEMBERS_MAX),
                            .messages = chat_body_array(doc, messages_max),
                            .origin = take(doc, messages_max * sizeof(uint32_t)),
                            .messages_max = messages_max};
    err->list = list;
    err->origin = b->origin;
}

bool chat_body_need_string(struct chat_error *err, const struct chat_place *at,
                           const struct json *v, const char *name)
{
    return (v != NULL && v->type == JSON_STRING) ||
           field_fail(err, at->text, "invalid_type", "%s.%s must be a string", at->text, name);
}

struct json *chat_body_message(struct chat_body *b, uint32_t origin, const char *role)
{
    struct json *message = &b->messages.items[b->messages.len];

    assert(b->messages.len < b->messages_max);
    b->origin[b->messages.len++] = origin;
    *message = chat_body_object(b->doc, MESSAGE_MEMBERS_MAX);
    chat_body_put(message, "role", chat_body_string(role));
    return message;
}

const struct json *chat_body_finish(struct chat_body *b)
{
    struct json *root = take(b->doc, sizeof(*root)); /* b may go before it */

    chat_body_put(&b->root, "messages", b->messages);
    *root = b->root;
    return root;
}
