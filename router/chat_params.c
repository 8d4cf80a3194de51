#include "router/chat_params.h"

#include <string.h>

enum { COMPLETION_MAX_TOKENS = 16, GENERATE_MAX_TOKENS = 128 };

static bool read_stop(const struct field *f, const struct json *v, void *out,
                      struct chat_error *err)
{
    struct chat_params *p = out;
    const struct json *items = v->type == JSON_ARRAY ? v->items : v;
    uint32_t n = v->type == JSON_ARRAY ? v->len : 1;

    if (n > STOP_STRINGS_MAX)
        return field_fail(err, f->name, "invalid_value", "%s: at most %d strings", f->name,
                          STOP_STRINGS_MAX);
    for (uint32_t i = 0; i < n; i++) {
        if (items[i].type != JSON_STRING)
            return field_fail(err, f->name, "invalid_type", "%s must be a string or a list of them",
                              f->name);
        if (items[i].len == 0 || items[i].len > STOP_BYTES_MAX)
            return field_fail(err, f->name, "invalid_value", "%s: a stop string has 1 to %d bytes",
                              f->name, STOP_BYTES_MAX);
        p->stop[p->n_stop++] = (struct stop_string){items[i].text, items[i].len};
    }
    return true;
}

static bool read_stop_ids(const struct field *f, const struct json *v, void *out,
                          struct chat_error *err)
{
    struct chat_params *p = out;

    if (v->type != JSON_ARRAY || v->len > GENERATION_STOP_IDS_MAX)
        return field_fail(err, f->name, "invalid_type", "%s must be a list of at most %d token ids",
                          f->name, GENERATION_STOP_IDS_MAX);
    for (uint32_t i = 0; i < v->len; i++) {
        int64_t id;

        if (!json_int(&v->items[i], &id) || id < 0 || id > INT32_MAX)
            return field_fail(err, f->name, "invalid_value", "%s[%u] is no token id", f->name, i);
        p->stop_ids[p->n_stop_ids++] = (int32_t)id;
    }
    return true;
}

static bool read_seed(const struct field *f, const struct json *v, void *out,
                      struct chat_error *err)
{
    struct chat_params *p = out;
    int64_t seed;

    if (!json_int(v, &seed))
        return field_fail(err, f->name, "invalid_type", "seed must be a whole number of 64 bits");
    p->has_seed = true;
    p->seed = (uint64_t)seed;
    return true;
}

int32_t chat_params_bias_id(const struct json_member *m, int32_t vocab)
{
    int64_t id = 0;

    if (m->key_len == 0 || m->key_len > 9 || strspn(m->key, "0123456789") != m->key_len)
        return -1;
    for (uint32_t i = 0; i < m->key_len; i++)
        id = id * 10 + (m->key[i] - '0');
    return id < vocab ? (int32_t)id : -1;
}

/* Whether the keys are token ids of this vocabulary is check()'s question. */
static bool read_logit_bias(const struct field *f, const struct json *v, void *out,
                            struct chat_error *err)
{
    struct chat_params *p = out;

    if (v->type != JSON_OBJECT)
        return field_fail(err, f->name, "invalid_type",
                          "%s must be an object of token ids and numbers", f->name);
    if (v->len > GENERATION_BIAS_MAX)
        return field_fail(err, f->name, "invalid_value", "%s: at most %d tokens", f->name,
                          GENERATION_BIAS_MAX);
    for (uint32_t i = 0; i < v->len; i++) {
        double bias;

        if (!json_double(&v->members[i].value, &bias) || !(bias >= -100 && bias <= 100))
            return field_fail(err, f->name, "invalid_value",
                              "%s of token %.20s must be a number within -100 and 100", f->name,
                              v->members[i].key);
    }
    p->logit_bias = v->len > 0 ? v : NULL;
    return true;
}

/* Completions: how many others are told of each token; 0 is a request, too. */
static bool read_n_logprobs(const struct field *f, const struct json *v, void *out,
                            struct chat_error *err)
{
    struct chat_params *p = out;

    if (v->type == JSON_FALSE)
        return true;
    if (!json_int(v, &p->top_logprobs) || p->top_logprobs < 0 ||
        p->top_logprobs > GENERATION_TOP_LOGPROBS_MAX)
        return field_fail(err, f->name, "invalid_value",
                          "%s must be a whole number within 0 and %d", f->name,
                          GENERATION_TOP_LOGPROBS_MAX);
    p->logprobs = true;
    return true;
}

/* Text is what everybody gets. */
static bool read_modalities(const struct field *f, const struct json *v, void *out,
                            struct chat_error *err)
{
    (void)out;
    for (uint32_t i = 0; v->type == JSON_ARRAY && i < v->len; i++)
        if (!json_is(&v->items[i], "text"))
            return field_fail(err, f->name, "unsupported_parameter",
                              "modalities other than text are not supported by this server");
    return v->type == JSON_ARRAY ||
           field_fail(err, f->name, "invalid_type", "modalities must be a list");
}

static bool read_stream_options(const struct field *f, const struct json *v, void *out,
                                struct chat_error *err)
{
    static const struct field options[] = {
        {"include_usage", FIELD_BOOL, offsetof(struct chat_params, include_usage)},
        {"continuous_usage_stats", FIELD_BOOL, offsetof(struct chat_params, continuous_usage)},
        {"include_obfuscation", FIELD_NEUTRAL, .neutral = "false"},
        {NULL},
    };
    static const struct field *const tables[] = {options, NULL};
    char inner[sizeof(err->param)];

    (void)f;
    if (fields_read(tables, v, out, err))
        return true;
    memcpy(inner, err->param, sizeof(inner));
    snprintf(err->param, sizeof(err->param), "stream_options%s%.100s", *inner ? "." : "", inner);
    return false;
}

#define AT(member) offsetof(struct chat_params, member)
#define ELSEWHERE(text)                                                                            \
    {                                                                                              \
        .name = text, .kind = FIELD_ELSEWHERE                                                      \
    }
#define NO_EFFECT(text)                                                                            \
    {                                                                                              \
        .name = text, .kind = FIELD_NO_EFFECT                                                      \
    }
#define NEUTRAL(text, values)                                                                      \
    {                                                                                              \
        .name = text, .kind = FIELD_NEUTRAL, .neutral = values                                     \
    }

/* What every API that generates takes. */
static const struct field shared_fields[] = {
    /* The generation. */
    {"model", FIELD_STRING, AT(model), .max = 256},
    {"n", FIELD_INT, AT(n), 1, CHAT_CHOICES_MAX},
    {"min_tokens", FIELD_INT, AT(min_tokens), 0, INT32_MAX},
    {"temperature", FIELD_FLOAT, AT(temperature), 0, 2},
    {"top_p", FIELD_FLOAT, AT(top_p), 1e-9, 1},
    {"top_k", FIELD_INT, AT(top_k), -1, INT32_MAX},
    {"min_p", FIELD_FLOAT, AT(min_p), 0, 1},
    {"frequency_penalty", FIELD_FLOAT, AT(frequency_penalty), -2, 2},
    {"presence_penalty", FIELD_FLOAT, AT(presence_penalty), -2, 2},
    {"repetition_penalty", FIELD_FLOAT, AT(repetition_penalty), 1e-3, 2},
    {"logit_bias", FIELD_READ, .read = read_logit_bias},
    {"seed", FIELD_READ, .read = read_seed},
    {"stop", FIELD_READ, .read = read_stop},
    {"stop_token_ids", FIELD_READ, .read = read_stop_ids},
    {"ignore_eos", FIELD_BOOL, AT(ignore_eos)},
    {"priority", FIELD_INT, AT(priority), INT32_MIN, INT32_MAX},
    {"rid", FIELD_STRING, AT(rid), .max = 63},
    /* The answer. */
    {"stream", FIELD_BOOL, AT(stream)},
    {"stream_options", FIELD_READ, .read = read_stream_options},
    {"no_stop_trim", FIELD_BOOL, AT(no_stop_trim)},
    {"include_stop_str_in_output", FIELD_BOOL, AT(no_stop_trim)}, /* vLLM's name */
    /* Labels. */
    NO_EFFECT("user"),
    NO_EFFECT("metadata"),
    NO_EFFECT("safety_identifier"),
    NO_EFFECT("prompt_cache_key"),
    NO_EFFECT("prompt_cache_retention"),
    /* Not offered. */
    NEUTRAL("length_penalty", "1"),
    NEUTRAL("prompt_logprobs", "0|false"),
    NEUTRAL("best_of", "1"),
    NEUTRAL("use_beam_search", "false"),
    NEUTRAL("add_special_tokens", "true|false"), /* the tokenizer adds none either way */
    NEUTRAL("skip_special_tokens", "true"),
    NEUTRAL("spaces_between_special_tokens", "true"),
    NEUTRAL("store", "false"),
    NEUTRAL("service_tier", "\"auto\"|\"default\""),
    NEUTRAL("regex", NULL),
    NEUTRAL("ebnf", NULL),
    NEUTRAL("json_schema", NULL),
    NEUTRAL("guided_json", NULL),
    NEUTRAL("guided_regex", NULL),
    NEUTRAL("guided_choice", NULL),
    NEUTRAL("guided_grammar", NULL),
    NEUTRAL("structured_outputs", NULL),
    NEUTRAL("stop_regex", "[]"),
    NEUTRAL("bad_words", "[]"),
    NEUTRAL("allowed_token_ids", "[]"),
    NEUTRAL("truncate_prompt_tokens", "0"),
    NEUTRAL("logits_processors", "[]"),
    NEUTRAL("custom_logit_processor", NULL),
    NEUTRAL("custom_params", "{}"),
    NEUTRAL("lora_path", "\"\""),
    NEUTRAL("session_params", "{}"),
    NEUTRAL("return_hidden_states", "false"),
    NEUTRAL("return_routed_experts", "false"),
    NEUTRAL("return_token_ids", "false"),
    NEUTRAL("return_cached_tokens_details", "false"),
    NEUTRAL("extra_key", "\"\""),
    NEUTRAL("cache_salt", "\"\""),
    NEUTRAL("bootstrap_host", NULL),
    NEUTRAL("bootstrap_port", NULL),
    NEUTRAL("bootstrap_room", NULL),
    NEUTRAL("data_parallel_rank", NULL),
    NEUTRAL("kv_transfer_params", "{}"),
    {NULL},
};

static const struct field chat_fields[] = {
    /* The prompt: common/text/chat reads these. */
    ELSEWHERE("messages"),
    ELSEWHERE("tools"),
    ELSEWHERE("tool_choice"),
    ELSEWHERE("parallel_tool_calls"),
    ELSEWHERE("response_format"),
    ELSEWHERE("thinking"),
    ELSEWHERE("reasoning_effort"),
    ELSEWHERE("chat_template_kwargs"),
    ELSEWHERE("continue_final_message"),
    ELSEWHERE("task"),
    /* The generation and the answer. */
    {"max_tokens", FIELD_INT, AT(max_tokens), 1, INT32_MAX},
    {"max_completion_tokens", FIELD_INT, AT(max_completion_tokens), 1, INT32_MAX},
    {"separate_reasoning", FIELD_BOOL, AT(separate_reasoning)},
    {"logprobs", FIELD_BOOL, AT(logprobs)},
    {"top_logprobs", FIELD_INT, AT(top_logprobs), 0, GENERATION_TOP_LOGPROBS_MAX},
    /* Not offered. */
    NEUTRAL("echo", "false"),
    NEUTRAL("include_reasoning", "true"),
    NEUTRAL("stream_reasoning", "true"),
    NEUTRAL("add_generation_prompt", "true"),
    NEUTRAL("verbosity", "\"medium\""),
    {"modalities", FIELD_READ, .read = read_modalities},
    NEUTRAL("audio", NULL),
    NEUTRAL("prediction", NULL),
    NEUTRAL("web_search_options", NULL),
    NEUTRAL("functions", "[]"),
    NEUTRAL("function_call", "\"auto\"|\"none\""),
    NEUTRAL("documents", "[]"),
    NEUTRAL("chat_template", NULL),
    NEUTRAL("mm_processor_kwargs", "{}"),
    NEUTRAL("use_audio_in_video", "false"),
    {NULL},
};

static const struct field completion_fields[] = {
    ELSEWHERE("prompt"), /* completion_task_run() */
    {"max_tokens", FIELD_INT, AT(max_tokens), 0, INT32_MAX},
    {"echo", FIELD_BOOL, AT(echo)},
    NEUTRAL("suffix", "\"\""),
    {"logprobs", FIELD_READ, .read = read_n_logprobs},
    {NULL},
};

/* SGLang's own API: what there is of a generation, by its names. */
static const struct field sampling_fields[] = {
    {"max_new_tokens", FIELD_INT, AT(max_tokens), 1, INT32_MAX},
    {"min_new_tokens", FIELD_INT, AT(min_tokens), 0, INT32_MAX},
    {"n", FIELD_INT, AT(n), 1, CHAT_CHOICES_MAX},
    {"temperature", FIELD_FLOAT, AT(temperature), 0, 2},
    {"top_p", FIELD_FLOAT, AT(top_p), 1e-9, 1},
    {"top_k", FIELD_INT, AT(top_k), -1, INT32_MAX},
    {"min_p", FIELD_FLOAT, AT(min_p), 0, 1},
    {"frequency_penalty", FIELD_FLOAT, AT(frequency_penalty), -2, 2},
    {"presence_penalty", FIELD_FLOAT, AT(presence_penalty), -2, 2},
    {"repetition_penalty", FIELD_FLOAT, AT(repetition_penalty), 1e-3, 2},
    {"logit_bias", FIELD_READ, .read = read_logit_bias},
    {"sampling_seed", FIELD_READ, .read = read_seed},
    {"stop", FIELD_READ, .read = read_stop},
    {"stop_token_ids", FIELD_READ, .read = read_stop_ids},
    {"ignore_eos", FIELD_BOOL, AT(ignore_eos)},
    {"no_stop_trim", FIELD_BOOL, AT(no_stop_trim)},
    /* Not offered. */
    NEUTRAL("skip_special_tokens", "true"),
    NEUTRAL("spaces_between_special_tokens", "true"),
    NEUTRAL("stop_regex", "[]"),
    NEUTRAL("regex", NULL),
    NEUTRAL("ebnf", NULL),
    NEUTRAL("json_schema", NULL),
    NEUTRAL("structural_tag", NULL),
    NEUTRAL("custom_params", "{}"),
    NEUTRAL("stream_interval", "1"),
    NEUTRAL("beam_width", "1"),
    {NULL},
};

static bool read_sampling(const struct field *f, const struct json *v, void *out,
                          struct chat_error *err)
{
    static const struct field *const tables[] = {sampling_fields, NULL};
    char inner[sizeof(err->param)];

    if (v->type != JSON_OBJECT)
        return field_fail(err, f->name, "invalid_type",
                          "%s must be an object, the same for all prompts", f->name);
    if (fields_read(tables, v, out, err))
        return true;
    memcpy(inner, err->param, sizeof(inner));
    snprintf(err->param, sizeof(err->param), "%s%s%.100s", f->name, *inner ? "." : "", inner);
    return false;
}

static const struct field generate_fields[] = {
    ELSEWHERE("text"), /* generate_task_run() */
    ELSEWHERE("input_ids"),
    {"sampling_params", FIELD_READ, .read = read_sampling},
    {"model", FIELD_STRING, AT(model), .max = 256},
    {"rid", FIELD_STRING, AT(rid), .max = 63},
    {"stream", FIELD_BOOL, AT(stream)},
    {"priority", FIELD_INT, AT(priority), INT32_MIN, INT32_MAX},
    /* Labels. */
    NO_EFFECT("log_metrics"),
    NO_EFFECT("no_logs"),
    NO_EFFECT("conversation_id"),
    NO_EFFECT("custom_labels"),
    /* Not offered. */
    NEUTRAL("return_logprob", "false"),
    NEUTRAL("logprob_start_len", "-1"),
    NEUTRAL("top_logprobs_num", "0"),
    NEUTRAL("token_ids_logprob", "[]"),
    NEUTRAL("return_text_in_logprobs", "true|false"),
    NEUTRAL("input_embeds", NULL),
    NEUTRAL("image_data", "[]"),
    NEUTRAL("video_data", "[]"),
    NEUTRAL("audio_data", "[]"),
    NEUTRAL("modalities", "[]"),
    NEUTRAL("lora_path", "\"\""),
    NEUTRAL("lora_id", "\"\""),
    NEUTRAL("session_params", "{}"),
    NEUTRAL("custom_logit_processor", NULL),
    NEUTRAL("return_hidden_states", "false"),
    NEUTRAL("return_routed_experts", "false"),
    NEUTRAL("return_bytes", "false"),
    NEUTRAL("return_entropy", "false"),
    NEUTRAL("background", "false"),
    NEUTRAL("extra_key", "\"\""),
    NEUTRAL("routing_key", "\"\""),
    NEUTRAL("validation_time", NULL),
    NEUTRAL("need_wait_for_image", "false"),
    NEUTRAL("bootstrap_host", NULL),
    NEUTRAL("bootstrap_port", NULL),
    NEUTRAL("bootstrap_room", NULL),
    NEUTRAL("bootstrap_pair_key", NULL),
    NEUTRAL("data_parallel_rank", NULL),
    {NULL},
};

const struct field *const chat_params_tables[] = {chat_fields, shared_fields, NULL};
const struct field *const completion_params_tables[] = {completion_fields, shared_fields, NULL};
const struct field *const generate_params_tables[] = {generate_fields, NULL};

static const struct chat_params defaults = {.n = 1,
                                            .max_tokens = -1,
                                            .max_completion_tokens = -1,
                                            .temperature = 1,
                                            .top_p = 1,
                                            .repetition_penalty = 1,
                                            .separate_reasoning = true};

static bool check(struct chat_params *p, int32_t vocab, struct chat_error *err)
{
    for (size_t i = 0; i < p->n_stop_ids; i++)
        if (p->stop_ids[i] >= vocab)
            return field_fail(err, "stop_token_ids", "invalid_value",
                              "stop_token_ids[%zu] is %d, the vocabulary has %d tokens", i,
                              p->stop_ids[i], vocab);
    for (uint32_t i = 0; p->logit_bias != NULL && i < p->logit_bias->len; i++)
        if (chat_params_bias_id(&p->logit_bias->members[i], vocab) < 0)
            return field_fail(err, "logit_bias", "invalid_value",
                              "logit_bias: '%.20s' is no token id below %d",
                              p->logit_bias->members[i].key, vocab);
    if (p->top_logprobs > 0 && !p->logprobs)
        return field_fail(err, "top_logprobs", "invalid_value",
                          "top_logprobs needs logprobs: true");
    if (p->max_tokens > 0 && p->max_completion_tokens > 0 &&
        p->max_tokens != p->max_completion_tokens)
        return field_fail(
            err, "max_tokens", "invalid_value",
            "max_tokens (%lld) and max_completion_tokens (%lld) contradict each other",
            (long long)p->max_tokens, (long long)p->max_completion_tokens);
    if (p->max_completion_tokens > 0)
        p->max_tokens = p->max_completion_tokens;
    if (p->max_tokens > 0 && p->min_tokens > p->max_tokens)
        return field_fail(err, "min_tokens", "invalid_value",
                          "min_tokens (%lld) is greater than max_tokens (%lld)",
                          (long long)p->min_tokens, (long long)p->max_tokens);
    if (!p->stream && (p->include_usage || p->continuous_usage))
        return field_fail(err, "stream_options", "invalid_value",
                          "stream_options is for stream: true");
    return true;
}

bool chat_params_read(const struct json *body, int32_t vocab, struct chat_params *out,
                      struct chat_error *err)
{
    struct chat_params p = defaults;

    if (!fields_read(chat_params_tables, body, &p, err) || !check(&p, vocab, err))
        return false;
    *out = p;
    return true;
}

bool completion_params_read(const struct json *body, int32_t vocab, struct chat_params *out,
                            struct chat_error *err)
{
    struct chat_params p = defaults;

    if (!fields_read(completion_params_tables, body, &p, err) || !check(&p, vocab, err))
        return false;
    if (p.max_tokens == 0 && !p.echo)
        return field_fail(err, "max_tokens", "invalid_value",
                          "max_tokens must be at least 1, or 0 with echo: true");
    if (p.max_tokens < 0)
        p.max_tokens = COMPLETION_MAX_TOKENS;
    *out = p;
    return true;
}

bool generate_params_read(const struct json *body, int32_t vocab, struct chat_params *out,
                          struct chat_error *err)
{
    struct chat_params p = defaults;

    p.max_tokens = GENERATE_MAX_TOKENS;
    if (!fields_read(generate_params_tables, body, &p, err) || !check(&p, vocab, err))
        return false;
    *out = p;
    return true;
}
