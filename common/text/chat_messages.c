#include "common/text/chat_messages.h"

#include <stdlib.h>
#include <string.h>

#include "common/text/chat_tokens.h"

bool chat_messages_init(struct chat_messages *cm, uint32_t n, struct chat_error *err)
{
    *cm = (struct chat_messages){.turns = calloc((size_t)n + 1, sizeof(*cm->turns)),
                                 .blocks = calloc((size_t)n + 1, sizeof(*cm->blocks))};
    return (cm->turns != NULL && cm->blocks != NULL) || chat_fail_memory(err);
}

void chat_messages_deinit(struct chat_messages *cm)
{
    free(cm->turns);
    free(cm->blocks);
    *cm = (struct chat_messages){0};
}

enum chat_role chat_role_parse(const struct json *v)
{
    static const struct {
        const char *name;
        enum chat_role role;
    } roles[] = {
        {"user", CHAT_ROLE_USER},           {"assistant", CHAT_ROLE_ASSISTANT},
        {"tool", CHAT_ROLE_TOOL},           {"system", CHAT_ROLE_SYSTEM},
        {"developer", CHAT_ROLE_DEVELOPER}, {"latest_reminder", CHAT_ROLE_REMINDER},
    };

    for (size_t i = 0; i < sizeof(roles) / sizeof(*roles); i++)
        if (json_is(v, roles[i].name))
            return roles[i].role;
    return CHAT_ROLE_UNKNOWN;
}

int chat_task_parse(const struct json *v)
{
    static const struct {
        const char *name;
        enum chat_token token;
    } tasks[] = {
        {"action", CHAT_TASK_ACTION}, {"query", CHAT_TASK_QUERY},
        {"title", CHAT_TASK_TITLE},   {"authority", CHAT_TASK_AUTHORITY},
        {"domain", CHAT_TASK_DOMAIN}, {"read_url", CHAT_TASK_READ_URL},
    };

    if (v == NULL || v->type == JSON_NULL)
        return CHAT_TASK_NONE;
    for (size_t i = 0; i < sizeof(tasks) / sizeof(*tasks); i++)
        if (json_is(v, tasks[i].name))
            return (int)tasks[i].token;
    return CHAT_TASK_UNKNOWN;
}

void chat_messages_add_block(struct chat_messages *cm, const struct chat_block *block)
{
    cm->blocks[cm->n_blocks++] = *block;
    cm->turns[cm->n_turns - 1].n_blocks++;
}

struct chat_turn *chat_messages_add(struct chat_messages *cm, enum chat_role role, uint32_t message,
                                    const struct json *content)
{
    struct chat_turn *turn = &cm->turns[cm->n_turns++];

    *turn = (struct chat_turn){
        .role = role, .message = message, .first_block = cm->n_blocks, .task = CHAT_TASK_NONE};
    if (content != NULL)
        chat_messages_add_block(cm, &(struct chat_block){.content = content, .message = message});
    return turn;
}

static struct chat_turn *last_user_turn(struct chat_messages *cm)
{
    struct chat_turn *last = cm->n_turns > 0 ? &cm->turns[cm->n_turns - 1] : NULL;

    return last != NULL && last->role == CHAT_ROLE_USER ? last : NULL;
}

void chat_messages_add_user(struct chat_messages *cm, uint32_t message, const struct json *content,
                            int task)
{
    struct chat_turn *turn = last_user_turn(cm);

    if (turn == NULL || turn->task != CHAT_TASK_NONE)
        chat_messages_add(cm, CHAT_ROLE_USER, message, NULL)->task = task;
    chat_messages_add_block(cm, &(struct chat_block){.content = content, .message = message});
}

void chat_messages_add_result(struct chat_messages *cm, uint32_t message,
                              const struct json *content, const struct json *call_id)
{
    if (last_user_turn(cm) == NULL)
        chat_messages_add(cm, CHAT_ROLE_USER, message, NULL);
    chat_messages_add_block(
        cm, &(struct chat_block){
                .content = content, .call_id = call_id, .message = message, .is_result = true});
}

/* ---- calls by id ---- */

static int compare_ids(const char *a, uint32_t a_len, const char *b, uint32_t b_len)
{
    return a_len != b_len ? (a_len < b_len ? -1 : 1) : memcmp(a, b, a_len);
}

static int compare_calls(const void *pa, const void *pb)
{
    const struct chat_call *a = pa, *b = pb;
    int order = compare_ids(a->id, a->id_len, b->id, b->id_len);

    return order != 0 ? order : (a->position > b->position) - (a->position < b->position);
}

uint32_t chat_calls_collect(const struct json *tool_calls, struct chat_call *calls)
{
    uint32_t n = 0;

    for (uint32_t i = 0; i < tool_calls->len; i++) {
        const struct json *id = json_get(&tool_calls->items[i], "id");

        if (id == NULL || id->type != JSON_STRING || id->len == 0)
            id = json_get(json_get(&tool_calls->items[i], "function"), "id");
        if (id == NULL || id->type != JSON_STRING || id->len == 0)
            continue;
        calls[n++] = (struct chat_call){.id = id->text, .id_len = id->len, .position = i};
    }
    qsort(calls, n, sizeof(*calls), compare_calls);
    return n;
}

struct chat_call *chat_calls_find(struct chat_call *calls, uint32_t n, const struct json *id)
{
    uint32_t low = 0, high = n; /* the answer is at high - 1: the last not above id */

    if (id == NULL || id->type != JSON_STRING)
        return NULL;
    while (low < high) {
        uint32_t mid = low + (high - low) / 2;

        if (compare_ids(calls[mid].id, calls[mid].id_len, id->text, id->len) <= 0)
            low = mid + 1;
        else
            high = mid;
    }
    if (high == 0 || compare_ids(calls[high - 1].id, calls[high - 1].id_len, id->text, id->len))
        return NULL;
    return &calls[high - 1];
}

/* ---- order of results ---- */

/* A result and where it is to stand. */
struct ranked {
    uint32_t call;  /* position of its call; 0 when unknown */
    uint32_t order; /* keeps the sort stable */
    struct chat_block block;
};

static int compare_ranked(const void *pa, const void *pb)
{
    const struct ranked *a = pa, *b = pb;

    if (a->call != b->call)
        return a->call < b->call ? -1 : 1;
    return a->order < b->order ? -1 : 1;
}

static bool sort_turn(struct chat_messages *cm, const struct chat_turn *turn,
                      struct chat_call *calls, uint32_t n_calls, struct chat_error *err)
{
    struct chat_block *blocks = cm->blocks + turn->first_block;
    struct ranked *ranked;
    uint32_t n = 0;

    for (uint32_t i = 0; i < turn->n_blocks; i++)
        n += blocks[i].is_result;
    if (n < 2)
        return true;
    ranked = malloc(n * sizeof(*ranked));
    if (ranked == NULL)
        return chat_fail_memory(err);
    n = 0;
    for (uint32_t i = 0; i < turn->n_blocks; i++)
        if (blocks[i].is_result) {
            const struct chat_call *call = chat_calls_find(calls, n_calls, blocks[i].call_id);

            ranked[n] = (struct ranked){
                .call = call == NULL ? 0 : call->position, .order = n, .block = blocks[i]};
            n++;
        }
    qsort(ranked, n, sizeof(*ranked), compare_ranked);
    n = 0;
    for (uint32_t i = 0; i < turn->n_blocks; i++)
        if (blocks[i].is_result)
            blocks[i] = ranked[n++].block;
    free(ranked);
    return true;
}

bool chat_messages_sort_results(struct chat_messages *cm, struct chat_error *err)
{
    struct chat_call *calls = NULL; /* of the latest assistant turn that has some */
    uint32_t n_calls = 0;
    bool ok = true;

    for (uint32_t i = 0; ok && i < cm->n_turns; i++) {
        const struct chat_turn *turn = &cm->turns[i];

        if (turn->role == CHAT_ROLE_ASSISTANT && turn->tool_calls != NULL) {
            free(calls);
            calls = malloc(turn->tool_calls->len * sizeof(*calls));
            if (calls == NULL) {
                ok = chat_fail_memory(err);
                break;
            }
            n_calls = chat_calls_collect(turn->tool_calls, calls);
        } else if (turn->role == CHAT_ROLE_USER && turn->n_blocks > 1 && n_calls > 0) {
            ok = sort_turn(cm, turn, calls, n_calls, err);
        }
    }
    free(calls);
    return ok;
}
