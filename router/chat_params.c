#include "router/chat_params.h"

#include <string.h>

enum { COMPLETION_MAX_TOKENS = 16, GENERATE_MAX_TOKENS = 128 };

bool chat_params_read_stop(const struct field *f, const struct json *v, void *out,
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

bool chat_params_read_inner(const struct field *f, const struct field *table, const struct json *v,
                            void *out, struct chat_error *err)
{
    const struct field *const tables[] = {table, NULL};
    char inner[sizeof(err->param)];

    if (v->type != JSON_OBJECT)
        return field_fail(err, f->name, "invalid_type", "%s must be an object", f->name);
    if (fields_read(tables, v, out, err))
        return true;
    memcpy(inner, err->param, sizeof(inner));
    snprintf(err->param, sizeof(err->param), "%.60s%s%.60s", f->name, *inner ? "." : "", inner);
    return false;
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

    return chat_params_read_inner(f, options, v, out, err);
}

#define AT(member) offsetof(struct chat_params, member)

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
    {"stop", FIELD_READ, .read = chat_params_read_stop},
    {"stop_token_ids", FIELD_READ, .read = read_stop_ids},
    {"ignore_eos", FIELD_BOOL, AT(ignore_eos)},
    {"priority", FIELD_INT, AT(priority), INT32_MIN, INT32_MAX},
    {"rid", FIELD_STRING, AT(rid), .max = 63},
    {"cache_salt", FIELD_STRING, AT(cache_salt), .max = CHAT_SALT_BYTES_MAX},
    {"extra_key", FIELD_STRING, AT(extra_key), .max = CHAT_SALT_BYTES_MAX},
    /* The answer. */
    {"stream", FIELD_BOOL, AT(stream)},
    {"stream_options", FIELD_READ, .read = read_stream_options},
    {"no_stop_trim", FIELD_BOOL, AT(no_stop_trim)},
    {"include_stop_str_in_output", FIELD_BOOL, AT(no_stop_trim)}, /* vLLM's name */
    /* Labels. */
    FIELD_NO_EFFECT_ROW("user"),
    FIELD_NO_EFFECT_ROW("metadata"),
    FIELD_NO_EFFECT_ROW("safety_identifier"),
    FIELD_NO_EFFECT_ROW("prompt_cache_key"),
    FIELD_NO_EFFECT_ROW("prompt_cache_retention"),
    FIELD_NO_EFFECT_ROW("prompt_cache_options"),
    FIELD_NO_EFFECT_ROW("custom_labels"),
    /* Not offered. */
    FIELD_NEUTRAL_ROW("length_penalty", "1"),
    FIELD_NEUTRAL_ROW("prompt_logprobs", "0|false"),
    FIELD_NEUTRAL_ROW("best_of", "1"),
    FIELD_NEUTRAL_ROW("use_beam_search", "false"),
    FIELD_NEUTRAL_ROW("add_special_tokens", "true|false"), /* the tokenizer adds none either way */
    FIELD_NEUTRAL_ROW("skip_special_tokens", "true"),
    FIELD_NEUTRAL_ROW("spaces_between_special_tokens", "true"),
    FIELD_NEUTRAL_ROW("store", "false"),
    FIELD_NEUTRAL_ROW("service_tier", "\"auto\"|\"default\""),
    FIELD_NEUTRAL_ROW("regex", NULL),
    FIELD_NEUTRAL_ROW("ebnf", NULL),
    FIELD_NEUTRAL_ROW("json_schema", NULL),
    FIELD_NEUTRAL_ROW("guided_json", NULL),
    FIELD_NEUTRAL_ROW("guided_regex", NULL),
    FIELD_NEUTRAL_ROW("guided_choice", NULL),
    FIELD_NEUTRAL_ROW("guided_grammar", NULL),
    FIELD_NEUTRAL_ROW("structured_outputs", NULL),
    FIELD_NEUTRAL_ROW("stop_regex", "[]"),
    FIELD_NEUTRAL_ROW("bad_words", "[]"),
    FIELD_NEUTRAL_ROW("allowed_token_ids", "[]"),
    FIELD_NEUTRAL_ROW("truncate_prompt_tokens", "0"),
    FIELD_NEUTRAL_ROW("logits_processors", "[]"),
    FIELD_NEUTRAL_ROW("custom_logit_processor", NULL),
    FIELD_NEUTRAL_ROW("custom_params", "{}"),
    FIELD_NEUTRAL_ROW("lora_path", "\"\""),
    FIELD_NEUTRAL_ROW("session_params", "{}"),
    FIELD_NEUTRAL_ROW("return_hidden_states", "false"),
    FIELD_NEUTRAL_ROW("return_routed_experts", "false"),
    FIELD_NEUTRAL_ROW("return_token_ids", "false"),
    FIELD_NEUTRAL_ROW("return_cached_tokens_details", "false"),
    FIELD_NEUTRAL_ROW("return_spec_tokens_details", "false"),
    FIELD_NEUTRAL_ROW("return_prompt_token_ids", "false"),
    FIELD_NEUTRAL_ROW("return_meta_info", "false"),
    FIELD_NEUTRAL_ROW("routed_experts_start_len", "0"),
    FIELD_NEUTRAL_ROW("session_id", "\"\""),
    FIELD_NEUTRAL_ROW("watermark", "false|{}"),
    FIELD_NEUTRAL_ROW("images_config", "{}"),
    FIELD_NEUTRAL_ROW("video_config", "{}"),
    FIELD_NEUTRAL_ROW("moderation", NULL),
    FIELD_NEUTRAL_ROW("mm_processor_kwargs", "{}"),
    FIELD_NEUTRAL_ROW("routed_dp_rank", NULL),
    FIELD_NEUTRAL_ROW("disagg_prefill_dp_rank", NULL),
    FIELD_NEUTRAL_ROW("bootstrap_host", NULL),
    FIELD_NEUTRAL_ROW("bootstrap_port", NULL),
    FIELD_NEUTRAL_ROW("bootstrap_room", NULL),
    FIELD_NEUTRAL_ROW("data_parallel_rank", NULL),
    FIELD_NEUTRAL_ROW("kv_transfer_params", "{}"),
    {NULL},
};

static const struct field chat_fields[] = {
    /* The prompt: common/text/chat reads these. */
    FIELD_ELSEWHERE_ROW("messages"),
    FIELD_ELSEWHERE_ROW("tools"),
    FIELD_ELSEWHERE_ROW("tool_choice"),
    FIELD_ELSEWHERE_ROW("response_format"),
    FIELD_ELSEWHERE_ROW("thinking"),
    FIELD_ELSEWHERE_ROW("reasoning_effort"),
    FIELD_ELSEWHERE_ROW("chat_template_kwargs"),
    FIELD_ELSEWHERE_ROW("continue_final_message"),
    FIELD_ELSEWHERE_ROW("add_generation_prompt"), /* vLLM's: false beside the former */
    FIELD_ELSEWHERE_ROW("task"),
    /* The generation and the answer. */
    {"max_tokens", FIELD_INT, AT(max_tokens), 1, INT32_MAX},
    {"max_completion_tokens", FIELD_INT, AT(max_completion_tokens), 1, INT32_MAX},
    {"parallel_tool_calls", FIELD_BOOL, AT(parallel_tool_calls)},
    {"separate_reasoning", FIELD_BOOL, AT(separate_reasoning)},
    {"stream_reasoning", FIELD_BOOL, AT(stream_reasoning)},
    {"logprobs", FIELD_BOOL, AT(logprobs)},
    {"top_logprobs", FIELD_INT, AT(top_logprobs), 0, GENERATION_TOP_LOGPROBS_MAX},
    /* Not offered. */
    FIELD_NEUTRAL_ROW("echo", "false"),
    FIELD_NEUTRAL_ROW("include_reasoning", "true"),
    FIELD_NEUTRAL_ROW("verbosity", "\"medium\""),
    {"modalities", FIELD_READ, .read = read_modalities},
    FIELD_NEUTRAL_ROW("audio", NULL),
    FIELD_NEUTRAL_ROW("prediction", NULL),
    FIELD_NEUTRAL_ROW("web_search_options", NULL),
    FIELD_NEUTRAL_ROW("functions", "[]"),
    FIELD_NEUTRAL_ROW("function_call", "\"auto\"|\"none\""),
    FIELD_NEUTRAL_ROW("documents", "[]"),
    FIELD_NEUTRAL_ROW("chat_template", NULL),
    FIELD_NEUTRAL_ROW("use_audio_in_video", "false"),
    FIELD_NEUTRAL_ROW("max_dynamic_patch", NULL),
    FIELD_NEUTRAL_ROW("min_dynamic_patch", NULL),
    FIELD_NEUTRAL_ROW("input_ids", NULL),
    FIELD_NEUTRAL_ROW("return_input_ids_in_sglext", "false"),
    FIELD_NEUTRAL_ROW("return_output_ids_in_sglext", "false"),
    FIELD_NEUTRAL_ROW("return_sampling_mask", "false"),
    FIELD_NEUTRAL_ROW("sampling_logprobs_mode", NULL),
    FIELD_NEUTRAL_ROW("return_flat_raw_output_top_logprobs", "false"),
    FIELD_NEUTRAL_ROW("return_flat_raw_top_logprobs_b64", "false"),
    {NULL},
};

static const struct field completion_fields[] = {
    FIELD_ELSEWHERE_ROW("prompt"), /* completion_task_run() */
    {"max_tokens", FIELD_INT, AT(max_tokens), 0, INT32_MAX},
    {"echo", FIELD_BOOL, AT(echo)},
    FIELD_NEUTRAL_ROW("suffix", "\"\""),
    FIELD_NEUTRAL_ROW("response_format", "{}"),
    {"logprobs", FIELD_READ, .read = read_n_logprobs},
    {NULL},
};

/* SGLang's own API: what there is of a generation, by its names. */
static const struct field sampling_fields[] = {
    {"max_new_tokens", FIELD_INT, AT(max_tokens), 0, INT32_MAX},
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
    {"stop", FIELD_READ, .read = chat_params_read_stop},
    {"stop_token_ids", FIELD_READ, .read = read_stop_ids},
    {"ignore_eos", FIELD_BOOL, AT(ignore_eos)},
    {"no_stop_trim", FIELD_BOOL, AT(no_stop_trim)},
    /* Not offered. */
    FIELD_NEUTRAL_ROW("skip_special_tokens", "true"),
    FIELD_NEUTRAL_ROW("spaces_between_special_tokens", "true"),
    FIELD_NEUTRAL_ROW("stop_regex", "[]"),
    FIELD_NEUTRAL_ROW("regex", NULL),
    FIELD_NEUTRAL_ROW("ebnf", NULL),
    FIELD_NEUTRAL_ROW("json_schema", NULL),
    FIELD_NEUTRAL_ROW("structural_tag", NULL),
    FIELD_NEUTRAL_ROW("custom_params", "{}"),
    FIELD_NEUTRAL_ROW("stream_interval", "1"),
    FIELD_NEUTRAL_ROW("beam_width", "1"),
    FIELD_NEUTRAL_ROW("watermark", "false|{}"),
    {NULL},
};

static bool read_sampling(const struct field *f, const struct json *v, void *out,
                          struct chat_error *err)
{
    return chat_params_read_inner(f, sampling_fields, v, out, err);
}

static const struct field generate_fields[] = {
    FIELD_ELSEWHERE_ROW("text"), /* generate_task_run() */
    FIELD_ELSEWHERE_ROW("input_ids"),
    {"sampling_params", FIELD_READ, .read = read_sampling},
    {"return_logprob", FIELD_BOOL, AT(logprobs)},
    {"logprob_start_len", FIELD_INT, AT(logprob_start), -1, INT32_MAX},
    {"top_logprobs_num", FIELD_INT, AT(top_logprobs), 0, GENERATION_TOP_LOGPROBS_MAX},
    {"return_text_in_logprobs", FIELD_BOOL, AT(logprob_text)},
    {"cache_salt", FIELD_STRING, AT(cache_salt), .max = CHAT_SALT_BYTES_MAX},
    {"extra_key", FIELD_STRING, AT(extra_key), .max = CHAT_SALT_BYTES_MAX},
    {"model", FIELD_STRING, AT(model), .max = 256},
    {"rid", FIELD_STRING, AT(rid), .max = 63},
    {"stream", FIELD_BOOL, AT(stream)},
    {"priority", FIELD_INT, AT(priority), INT32_MIN, INT32_MAX},
    /* Labels. */
    FIELD_NO_EFFECT_ROW("log_metrics"),
    FIELD_NO_EFFECT_ROW("no_logs"),
    FIELD_NO_EFFECT_ROW("conversation_id"),
    FIELD_NO_EFFECT_ROW("custom_labels"),
    /* Not offered. */
    FIELD_NEUTRAL_ROW("token_ids_logprob", "[]"),
    FIELD_NEUTRAL_ROW("return_sampling_mask", "false"),
    FIELD_NEUTRAL_ROW("sampling_logprobs_mode", NULL),
    FIELD_NEUTRAL_ROW("return_flat_raw_top_logprobs", "false"),
    FIELD_NEUTRAL_ROW("return_flat_raw_output_top_logprobs", "false"),
    FIELD_NEUTRAL_ROW("return_flat_raw_top_logprobs_b64", "false"),
    FIELD_NEUTRAL_ROW("return_prompt_token_ids", "false"),
    FIELD_NEUTRAL_ROW("return_indexer_topk", "false"),
    FIELD_NEUTRAL_ROW("routed_experts_start_len", "0"),
    FIELD_NEUTRAL_ROW("session_id", "\"\""),
    FIELD_NEUTRAL_ROW("watermark", "false|{}"),
    FIELD_NEUTRAL_ROW("require_reasoning", "false"),
    FIELD_NEUTRAL_ROW("max_thinking_tokens", NULL),
    FIELD_NEUTRAL_ROW("mm_hashes", "[]"),
    FIELD_NEUTRAL_ROW("mm_content_hashes", "[]"),
    FIELD_NEUTRAL_ROW("use_audio_in_video", "false"),
    FIELD_NEUTRAL_ROW("video_config", "{}"),
    FIELD_NEUTRAL_ROW("images_config", "{}"),
    FIELD_NEUTRAL_ROW("mm_processor_kwargs", "{}"),
    FIELD_NEUTRAL_ROW("max_dynamic_patch", NULL),
    FIELD_NEUTRAL_ROW("min_dynamic_patch", NULL),
    FIELD_NEUTRAL_ROW("image_max_dynamic_patch", NULL),
    FIELD_NEUTRAL_ROW("video_max_dynamic_patch", NULL),
    FIELD_NEUTRAL_ROW("need_wait_for_mm_inputs", "false"),
    FIELD_NEUTRAL_ROW("num_items_assigned", NULL),
    FIELD_NEUTRAL_ROW("encoder_urls", "[]"),
    FIELD_NEUTRAL_ROW("multi_item_delimiter_indices", "[]"),
    FIELD_NEUTRAL_ROW("token_indices_to_pool", "[]"),
    FIELD_NEUTRAL_ROW("positional_embed_overrides", NULL),
    FIELD_NEUTRAL_ROW("decode_tp_size", NULL),
    FIELD_NEUTRAL_ROW("routed_dp_rank", NULL),
    FIELD_NEUTRAL_ROW("disagg_prefill_dp_rank", NULL),
    FIELD_NEUTRAL_ROW("http_worker_ipc", NULL),
    FIELD_NEUTRAL_ROW("external_trace_header", NULL),
    FIELD_NEUTRAL_ROW("received_time", NULL),
    FIELD_NEUTRAL_ROW("kv_hints", NULL),
    FIELD_NEUTRAL_ROW("input_embeds", NULL),
    FIELD_NEUTRAL_ROW("image_data", "[]"),
    FIELD_NEUTRAL_ROW("video_data", "[]"),
    FIELD_NEUTRAL_ROW("audio_data", "[]"),
    FIELD_NEUTRAL_ROW("modalities", "[]"),
    FIELD_NEUTRAL_ROW("lora_path", "\"\""),
    FIELD_NEUTRAL_ROW("lora_id", "\"\""),
    FIELD_NEUTRAL_ROW("session_params", "{}"),
    FIELD_NEUTRAL_ROW("custom_logit_processor", NULL),
    FIELD_NEUTRAL_ROW("return_hidden_states", "false"),
    FIELD_NEUTRAL_ROW("return_routed_experts", "false"),
    FIELD_NEUTRAL_ROW("return_bytes", "false"),
    FIELD_NEUTRAL_ROW("return_entropy", "false"),
    FIELD_NEUTRAL_ROW("background", "false"),
    FIELD_NEUTRAL_ROW("routing_key", "\"\""),
    FIELD_NEUTRAL_ROW("validation_time", NULL),
    FIELD_NEUTRAL_ROW("need_wait_for_image", "false"),
    FIELD_NEUTRAL_ROW("bootstrap_host", NULL),
    FIELD_NEUTRAL_ROW("bootstrap_port", NULL),
    FIELD_NEUTRAL_ROW("bootstrap_room", NULL),
    FIELD_NEUTRAL_ROW("bootstrap_pair_key", NULL),
    FIELD_NEUTRAL_ROW("data_parallel_rank", NULL),
    {NULL},
};

const struct field *const chat_params_tables[] = {chat_fields, shared_fields, NULL};
const struct field *const completion_params_tables[] = {completion_fields, shared_fields, NULL};
const struct field *const generate_params_tables[] = {generate_fields, NULL};

const struct chat_params chat_params_defaults = {.n = 1,
                                                 .max_tokens = -1,
                                                 .max_completion_tokens = -1,
                                                 .temperature = 1,
                                                 .top_p = 1,
                                                 .repetition_penalty = 1,
                                                 .separate_reasoning = true,
                                                 .stream_reasoning = true,
                                                 .parallel_tool_calls = true,
                                                 .logprob_start = -1};

bool chat_params_check(struct chat_params *p, int32_t vocab, struct chat_error *err)
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
    struct chat_params p = chat_params_defaults;

    if (!fields_read(chat_params_tables, body, &p, err) || !chat_params_check(&p, vocab, err))
        return false;
    if (p.top_logprobs > 0 && !p.logprobs)
        return field_fail(err, "top_logprobs", "invalid_value",
                          "top_logprobs needs logprobs: true");
    *out = p;
    return true;
}

bool completion_params_read(const struct json *body, int32_t vocab, struct chat_params *out,
                            struct chat_error *err)
{
    struct chat_params p = chat_params_defaults;

    if (!fields_read(completion_params_tables, body, &p, err) || !chat_params_check(&p, vocab, err))
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
    struct chat_params p = chat_params_defaults;

    p.max_tokens = GENERATE_MAX_TOKENS;
    if (!fields_read(generate_params_tables, body, &p, err) || !chat_params_check(&p, vocab, err))
        return false;
    if (p.logprob_start >= 0 && !p.logprobs)
        p.logprob_start = -1; /* as SGLang has it: they say nothing without return_logprob */
    if (!p.logprobs)
        p.top_logprobs = 0;
    *out = p;
    return true;
}
