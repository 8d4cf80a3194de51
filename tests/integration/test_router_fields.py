"""Every field that the five generating APIs' clients can send: honoured, with its effect seen, or refused by name.

The lists of names are SGLang 0.5.23's request classes (PDRoutingFields included) and, read from the installed packages,
what the openai and anthropic clients know. A name that is in none of the tables below fails the test.
"""
import json

import pytest

from conftest import http_get
from mock_cluster import MockCluster, directive, post, sse
from test_router_messages import CALL

# ---- the names ----

PD = "bootstrap_host bootstrap_port bootstrap_room routed_dp_rank disagg_prefill_dp_rank"
SGLANG = {
    "chat": PD + """ messages model frequency_penalty logit_bias logprobs top_logprobs max_tokens max_completion_tokens n
        presence_penalty response_format seed stop stream stream_options temperature top_p user tools tool_choice
        parallel_tool_calls return_hidden_states return_routed_experts routed_experts_start_len
        return_cached_tokens_details return_spec_tokens_details return_prompt_token_ids return_token_ids return_meta_info
        return_input_ids_in_sglext return_output_ids_in_sglext return_sampling_mask sampling_logprobs_mode
        return_flat_raw_output_top_logprobs return_flat_raw_top_logprobs_b64 reasoning_effort thinking task top_k min_p
        min_tokens regex ebnf repetition_penalty stop_token_ids stop_regex no_stop_trim ignore_eos continue_final_message
        skip_special_tokens lora_path session_id session_params separate_reasoning stream_reasoning chat_template_kwargs
        max_dynamic_patch min_dynamic_patch use_audio_in_video images_config video_config mm_processor_kwargs
        custom_logit_processor custom_params watermark input_ids rid extra_key cache_salt priority data_parallel_rank""",
    "completion": PD + """ model prompt best_of echo frequency_penalty logit_bias logprobs max_tokens n presence_penalty seed
        stop stream stream_options suffix temperature top_p user return_hidden_states return_routed_experts
        routed_experts_start_len return_cached_tokens_details return_spec_tokens_details return_token_ids top_k min_p
        min_tokens json_schema regex ebnf repetition_penalty stop_token_ids stop_regex no_stop_trim ignore_eos
        skip_special_tokens lora_path session_id session_params response_format custom_params custom_logit_processor
        watermark images_config mm_processor_kwargs data_parallel_rank rid extra_key cache_salt priority
        custom_labels""",
    "generate": """rid session_id text input_ids input_embeds image_data video_data audio_data mm_hashes
        mm_content_hashes use_audio_in_video video_config sampling_params watermark return_logprob logprob_start_len
        top_logprobs_num token_ids_logprob return_sampling_mask sampling_logprobs_mode return_text_in_logprobs
        return_flat_raw_top_logprobs return_flat_raw_output_top_logprobs return_flat_raw_top_logprobs_b64 stream
        log_metrics return_hidden_states return_routed_experts routed_experts_start_len return_indexer_topk modalities
        session_params lora_path lora_id custom_logit_processor positional_embed_overrides bootstrap_host bootstrap_port
        bootstrap_room bootstrap_pair_key decode_tp_size routed_dp_rank data_parallel_rank disagg_prefill_dp_rank
        routing_key conversation_id http_worker_ipc background require_reasoning max_thinking_tokens priority extra_key
        no_logs custom_labels return_bytes return_entropy return_prompt_token_ids external_trace_header received_time
        need_wait_for_mm_inputs num_items_assigned encoder_urls max_dynamic_patch min_dynamic_patch
        image_max_dynamic_patch video_max_dynamic_patch images_config mm_processor_kwargs multi_item_delimiter_indices
        token_indices_to_pool cache_salt kv_hints""",
    "sampling": """max_new_tokens stop stop_token_ids stop_regex temperature top_p top_k min_p frequency_penalty
        presence_penalty repetition_penalty min_new_tokens n beam_width json_schema regex ebnf structural_tag ignore_eos
        skip_special_tokens spaces_between_special_tokens no_stop_trim stream_interval logit_bias sampling_seed
        custom_params watermark""",
    "responses": PD + """ background include input instructions max_output_tokens max_tool_calls metadata model
        parallel_tool_calls previous_response_id reasoning service_tier store stream temperature text tool_choice tools
        top_logprobs top_p truncation user chat_template_kwargs request_id session_id priority extra_key cache_salt
        data_parallel_rank frequency_penalty presence_penalty stop top_k min_p repetition_penalty""",
    "anthropic": """model messages max_tokens metadata stop_sequences stream system temperature thinking tool_choice
        tools top_k top_p output_config betas""",
}


def client_names():
    from anthropic.types import message_count_tokens_params, message_create_params
    from anthropic.types.beta import message_create_params as beta_params
    from openai.types import completion_create_params
    from openai.types.chat import completion_create_params as chat_params
    from openai.types.responses import response_create_params
    return {
        "chat": set(chat_params.CompletionCreateParamsBase.__annotations__),
        "completion": set(completion_create_params.CompletionCreateParamsBase.__annotations__),
        "responses": set(response_create_params.ResponseCreateParamsBase.__annotations__),
        "anthropic": set(message_create_params.MessageCreateParamsBase.__annotations__) |
        set(beta_params.MessageCreateParamsBase.__annotations__),
        "count": set(message_count_tokens_params.MessageCountTokensParams.__annotations__),
    }


# ---- the APIs ----

class Api:
    """path; body(directive) of a request; text(answer) that it gives; where limits and text parts stand."""

    def __init__(self, path, body, text, limit):
        self.path, self.body, self.text, self.limit = path, body, text, limit


def responses_text(r):
    return "".join(p["text"] for i in r["output"] if i["type"] == "message" for p in i["content"])


THINKS_NOT = {"chat_template_kwargs": {"thinking": False}}
APIS = {
    "chat": Api("/v1/chat/completions", lambda d: {
        "messages": [{"role": "user", "content": directive(**d)}], "max_tokens": 2000, **THINKS_NOT},
        lambda r: r["choices"][0]["message"]["content"], "max_tokens"),
    "completion": Api("/v1/completions", lambda d: {"prompt": directive(**d), "max_tokens": 2000},
                      lambda r: r["choices"][0]["text"], "max_tokens"),
    "generate": Api("/generate", lambda d: {"text": directive(**d), "sampling_params": {"max_new_tokens": 2000}},
                    lambda r: r["text"], None),
    "sampling": Api("/generate", lambda d: {"text": directive(**d)}, lambda r: r["text"], "max_new_tokens"),
    "responses": Api("/v1/responses", lambda d: {"model": "m", "input": directive(**d), "max_output_tokens": 2000,
                                                 **THINKS_NOT}, responses_text, "max_output_tokens"),
    "anthropic": Api("/v1/messages", lambda d: {"model": "m", "max_tokens": 2000, "messages": [
        {"role": "user", "content": directive(**d)}]},
        lambda r: "".join(b["text"] for b in r["content"] if b["type"] == "text"), "max_tokens"),
}


def ask(c, api, do, fields):
    a = APIS[api]
    body = a.body(do)
    if api == "sampling":
        body["sampling_params"] = {"max_new_tokens": 2000, **fields}
    else:
        body.update(fields)
    status, r = post(c, a.path, body)
    assert status == 200, (fields, r)
    return r


def report(c, api, fields):
    return json.loads(APIS[api].text(ask(c, api, {"report": "ids"}, fields)))


def refusal(c, api, field, value):
    """The status, and whether the refusal names the field."""
    a = APIS[api]
    body = a.body({"text": "x"})
    if api == "sampling":
        body["sampling_params"] = {field: value}
    else:
        body[field] = value
    status, r = post(c, a.path, body)
    if status == 200:
        return status, r
    e = r["error"]
    named = (e.get("param") or "").split("[")[0].split(".")[-1 if api == "sampling" else 0]
    return status, named == field or field in e["message"] or e


# ---- honoured: what the worker is told ----

# field -> (value, member of the worker's submission, what it says)
TOLD = {
    "temperature": (0.5, "temperature", 0.5), "top_p": (0.25, "top_p", 0.25), "top_k": (7, "top_k", 7),
    "min_p": (0.125, "min_p", 0.125), "seed": (77, "seed", 77), "sampling_seed": (77, "seed", 77),
    "min_tokens": (3, "min_new_tokens", 3), "min_new_tokens": (3, "min_new_tokens", 3),
    "ignore_eos": (True, "ignore_eos", 1), "stop_token_ids": ([5, 6], "stop", [5, 6]),
    "presence_penalty": (0.5, "presence_penalty", 0.5), "frequency_penalty": (0.25, "frequency_penalty", 0.25),
    "repetition_penalty": (1.5, "repetition_penalty", 1.5), "logit_bias": ({"5": 2}, "logit_bias", [[5, 2]]),
    "priority": (9, "priority", 9), "rid": ("mine", "rid", "mine"), "request_id": ("mine", "rid", "mine"),
    "max_tokens": (1500, "max_new_tokens", 1500), "max_output_tokens": (1500, "max_new_tokens", 1500),
    "max_new_tokens": (1500, "max_new_tokens", 1500),
    "return_logprob": (True, "logprobs", 1),
}
TOLD_OF = {
    "chat": "temperature top_p top_k min_p seed min_tokens ignore_eos stop_token_ids presence_penalty frequency_penalty "
            "repetition_penalty logit_bias priority rid max_tokens",
    "completion": "temperature top_p top_k min_p seed min_tokens ignore_eos stop_token_ids presence_penalty "
                  "frequency_penalty repetition_penalty logit_bias priority rid max_tokens",
    "generate": "priority rid return_logprob",
    "sampling": "temperature top_p top_k min_p sampling_seed min_new_tokens ignore_eos stop_token_ids presence_penalty "
                "frequency_penalty repetition_penalty logit_bias max_new_tokens",
    "responses": "temperature top_p top_k min_p presence_penalty frequency_penalty repetition_penalty priority "
                 "request_id max_output_tokens",
    "anthropic": "temperature top_p top_k priority rid max_tokens",
}

# ---- honoured: what the client sees ----


def stops(field, value="two"):
    def check(c, api):
        r = ask(c, api, {"text": "one two three"}, {field: value})
        assert APIS[api].text(r) == "one "
    return check


def keeps_stop(c, api):
    r = ask(c, api, {"text": "one two three"}, {"stop": "two", "no_stop_trim": True})
    assert APIS[api].text(r) == "one two"


def streams(c, api):
    body = {**APIS[api].body({"text": "a b"}), "stream": True}
    assert len(sse(c, APIS[api].path, body)) > 2


def counts_as_it_streams(c, api):
    body = {**APIS[api].body({"text": "a b"}), "stream": True}
    last = [json.loads(d) for _, d in sse(c, APIS[api].path, {**body, "stream_options": {"include_usage": True}})[:-1]]
    assert last[-1]["usage"]["completion_tokens"] > 1 and all(e["usage"] is None for e in last[:-1])
    each = [json.loads(d) for _, d in sse(c, APIS[api].path, {
        **body, "stream_options": {"continuous_usage_stats": True}})[:-1]]
    assert all(e["usage"]["prompt_tokens"] > 1 for e in each)


def answers_twice(c, api):
    if api == "sampling":
        assert [r["text"] for r in ask(c, api, {"text": "x"}, {"n": 2})] == ["x", "x"]
    else:
        assert [x["index"] for x in ask(c, api, {"text": "x"}, {"n": 2})["choices"]] == [0, 1]


def salts(field):
    def check(c, api):
        plain, salted = (report(c, api, f)["cache_salt"] for f in ({}, {field: "a"}))
        assert plain == "0" * 16 != salted
    return check


def prompt_differs(field, value, word=None):
    """The field changes the prompt; the word is in it."""
    def check(c, api):
        before, after = (report(c, api, f)["prompt"] for f in ({}, {field: value}))
        text = post(c, "/detokenize", {"tokens": after})[1]["text"]
        assert before != after and (word is None or word in text), text
    return check


def logprobs_of_chat(c, api):
    lp = ask(c, api, {"text": "a b"}, {"logprobs": True, "top_logprobs": 2})["choices"][0]["logprobs"]["content"]
    assert len(lp) > 2 and all(len(x["top_logprobs"]) == 2 for x in lp)


def logprobs_of_completion(c, api):
    lp = ask(c, api, {"text": "a b"}, {"logprobs": 2})["choices"][0]["logprobs"]
    assert len(lp["tokens"]) == len(lp["token_logprobs"]) == len(lp["top_logprobs"]) > 2


def logprobs_of_generate(c, api):
    m = ask(c, api, {"text": "a b"}, {"return_logprob": True, "logprob_start_len": 2, "top_logprobs_num": 2,
                                      "return_text_in_logprobs": True})["meta_info"]
    assert len(m["input_token_logprobs"]) == m["prompt_tokens"] - 2
    assert all(len(x) == 2 and x[0][2] for x in m["output_top_logprobs"])


def logprobs_of_responses(c, api):
    fields = {"top_logprobs": 2, "include": ["message.output_text.logprobs"]}
    r = ask(c, api, {"text": "a b"}, fields)
    assert all(len(x["top_logprobs"]) == 2 for x in r["output"][-1]["content"][0]["logprobs"])


def echoes(c, api):
    r = ask(c, api, {"text": "x"}, {"echo": True})
    assert APIS[api].text(r) == directive(text="x") + "x"


FUNCTION = {"name": "f", "description": "what it does", "parameters": {"type": "object"}}
FUNCTIONS = {"chat": [{"type": "function", "function": FUNCTION}], "responses": [{"type": "function", **FUNCTION}],
             "anthropic": [{"name": "f", "description": "what it does", "input_schema": {"type": "object"}}]}


def shows_tools(c, api):
    prompt_differs("tools", FUNCTIONS[api], "what it does")(c, api)


def chooses_tools(c, api):
    none, forced = {"chat": ("none", "required"), "responses": ("none", "required"),
                    "anthropic": ({"type": "none"}, {"type": "any"})}[api]
    hidden = report(c, api, {"tools": FUNCTIONS[api], "tool_choice": none})["prompt"]
    text = post(c, "/detokenize", {"tokens": hidden})[1]["text"]
    assert "what it does" not in text
    call = CALL.replace("\n\n<｜DSML｜tool_calls>\n", "")  # the prompt opens the block
    r = json.dumps(ask(c, api, {"text": call}, {"tools": FUNCTIONS[api], "tool_choice": forced}))
    assert "get_weather" in r and "DSML" not in r


def calls_once(c, api):
    fields = {"tools": FUNCTIONS[api], "parallel_tool_calls": False}
    r = json.dumps(ask(c, api, {"text": CALL}, fields))
    assert r.count('"get_weather"') == 1


def reasoning_in_content(c, api):
    r = ask(c, api, {"text": "a</think>b"}, {"separate_reasoning": False, "chat_template_kwargs": {"thinking": True}})
    m = r["choices"][0]["message"]
    assert (m["content"], m["reasoning_content"]) == ("a</think>b", None)


def reasoning_in_one_piece(c, api):
    body = {**APIS[api].body({"text": "a b c</think>d"}), "stream": True, "stream_reasoning": False,
            "chat_template_kwargs": {"thinking": True}}
    deltas = [json.loads(d)["choices"][0]["delta"] for _, d in sse(c, APIS[api].path, body)[:-1]]
    assert [d["reasoning_content"] for d in deltas if d.get("reasoning_content")] == ["a b c"]


def thinks(field, value):
    def check(c, api):
        ids = report(c, api, {"chat_template_kwargs": None, field: value} if api != "anthropic" else {field: value})
        assert post(c, "/detokenize", {"tokens": ids["prompt"]})[1]["text"].endswith("<think>")
    return check


def goes_on(c, api):
    messages = APIS[api].body({"report": "ids"})["messages"] + [{"role": "assistant", "content": "so far"}]
    got = report(c, api, {"messages": messages, "continue_final_message": True})["prompt"]
    assert got == report(c, api, {"messages": messages, "continue_final_message": True,
                                  "add_generation_prompt": False})["prompt"]
    assert post(c, "/detokenize", {"tokens": got})[1]["text"].endswith("so far")


def json_format(c, api):
    schema = {"type": "object", "title": "mine"}
    field, value = {
        "chat": ("response_format", {"type": "json_schema", "json_schema": {"schema": schema}}),
        "responses": ("text", {"format": {"type": "json_schema", "name": "n", "schema": schema}}),
        "anthropic": ("output_config", {"format": {"type": "json_schema", "schema": schema}}),
    }[api]
    prompt_differs(field, value, '"mine"')(c, api)


def named_model(c, api):
    """Any model is this one; the answer says which."""
    assert ask(c, api, {"text": "x"}, {"model": "any"}).get("model", "mock") == "mock"


def the_prompt(c, api):
    assert APIS[api].text(ask(c, api, {"text": "seen"}, {})) == "seen"


def prompt_by_ids(c, api):
    ids = post(c, "/tokenize", {"prompt": directive(text="seen")})[1]["tokens"]
    status, r = post(c, "/generate", {"input_ids": ids})
    assert status == 200 and r["text"] == "seen"


def echoed(field, value):
    def check(c, api):
        assert ask(c, api, {"text": "x"}, {field: value})[field] == value
    return check


SEEN = {
    "chat": {
        "messages": the_prompt, "model": named_model, "stop": stops("stop"), "no_stop_trim": keeps_stop, "stream": streams,
        "stream_options": counts_as_it_streams, "n": answers_twice, "cache_salt": salts("cache_salt"),
        "extra_key": salts("extra_key"), "logprobs": logprobs_of_chat, "top_logprobs": logprobs_of_chat,
        "tools": shows_tools, "tool_choice": chooses_tools, "parallel_tool_calls": calls_once,
        "separate_reasoning": reasoning_in_content, "stream_reasoning": reasoning_in_one_piece,
        "thinking": thinks("thinking", {"type": "enabled"}), "reasoning_effort": thinks("reasoning_effort", "high"),
        "chat_template_kwargs": thinks("chat_template_kwargs", {"thinking": True}), "continue_final_message": goes_on,
        "task": prompt_differs("task", "title"), "response_format": json_format,
        "max_completion_tokens": lambda c, api: report(c, api, {"max_tokens": None, "max_completion_tokens": 1500}),
    },
    "completion": {
        "prompt": the_prompt, "model": named_model, "stop": stops("stop"), "no_stop_trim": keeps_stop, "stream": streams,
        "stream_options": counts_as_it_streams, "n": answers_twice, "cache_salt": salts("cache_salt"),
        "extra_key": salts("extra_key"), "logprobs": logprobs_of_completion, "echo": echoes,
    },
    "generate": {
        "text": the_prompt, "input_ids": prompt_by_ids, "stream": streams, "cache_salt": salts("cache_salt"),
        "extra_key": salts("extra_key"), "logprob_start_len": logprobs_of_generate,
        "top_logprobs_num": logprobs_of_generate, "return_text_in_logprobs": logprobs_of_generate,
        "sampling_params": lambda c, api: report(c, api, {"sampling_params": {"max_new_tokens": 1999}}),
    },
    "sampling": {"stop": stops("stop"), "no_stop_trim": keeps_stop, "n": answers_twice},
    "responses": {
        "input": the_prompt, "model": named_model, "stop": stops("stop"), "stream": streams,
        "cache_salt": salts("cache_salt"), "extra_key": salts("extra_key"), "top_logprobs": logprobs_of_responses,
        "include": logprobs_of_responses, "tools": shows_tools, "tool_choice": chooses_tools,
        "parallel_tool_calls": calls_once, "instructions": prompt_differs("instructions", "be brief", "be brief"),
        "reasoning": thinks("reasoning", {"effort": "high"}), "text": json_format,
        "chat_template_kwargs": thinks("chat_template_kwargs", {"thinking": True}),
        "metadata": echoed("metadata", {"a": "b"}), "user": echoed("user", "u"),
        "safety_identifier": echoed("safety_identifier", "s"), "prompt_cache_key": echoed("prompt_cache_key", "k"),
    },
    "anthropic": {
        "messages": the_prompt, "model": named_model, "stop_sequences": stops("stop_sequences", ["two"]),
        "stream": streams, "cache_salt": salts("cache_salt"), "extra_key": salts("extra_key"), "tools": shows_tools,
        "tool_choice": chooses_tools, "system": prompt_differs("system", "be brief", "be brief"),
        "thinking": thinks("thinking", {"type": "enabled", "budget_tokens": 1024}), "output_config": json_format,
    },
}

# ---- taken without an effect: labels and hints, which ask nothing of a server without records and prices ----

LABELS = {
    "chat": "user metadata safety_identifier prompt_cache_key prompt_cache_options prompt_cache_retention",
    "completion": "user custom_labels",
    "generate": "log_metrics no_logs conversation_id custom_labels",
    "sampling": "",
    "responses": "prompt_cache_options prompt_cache_retention max_tool_calls",
    "anthropic": "metadata cache_control user_profile_id workspace_id",
}
LABEL_VALUES = {"metadata": {"user_id": "u"}, "log_metrics": True, "no_logs": True, "max_tool_calls": 3,
                "cache_control": {"type": "ephemeral"}, "prompt_cache_options": {"mode": "implicit"}}

# ---- refused: everything else, whatever it is set to ----

ODD = ["surely not offered", [["odd"]], 0.123]
NOT_SENT = {"betas"}  # the anthropic client puts it in a header; in a body it is refused


def names(api):
    known = client_names()
    return sorted(set(SGLANG[api].split()) | known.get(api, set()))


def cases():
    for api in APIS:
        for field in names(api):
            yield api, field


@pytest.fixture(scope="module")
def router(tmp_path_factory, tokenizer_json):
    c = MockCluster(tmp_path_factory.mktemp("router"), tokenizer_json)
    yield c
    c.stop()


@pytest.mark.parametrize("api,field", list(cases()))
def test_each_field_is_honoured_or_refused_by_name(router, api, field):
    if field in TOLD_OF[api].split():
        value, member, want = TOLD[field]
        assert report(router, api, {field: value})[member] == want
        assert report(router, api, {})[member] != want
    elif field in SEEN[api]:
        SEEN[api][field](router, api)
    elif field in LABELS[api].split():
        assert APIS[api].text(ask(router, api, {"text": "x"}, {field: LABEL_VALUES.get(field, "label")})) == "x"
    else:
        for value in ODD:
            assert refusal(router, api, field, value) == (400, True), (api, field, value)
    if field not in ("messages", "prompt", "text", "input", "model", "max_tokens", "input_ids", "sampling_params"):
        assert refusal(router, api, field, None)[0] == 200, "null counts as absent"


@pytest.mark.parametrize("api", list(APIS))
def test_a_name_that_nobody_knows_is_refused(router, api):
    assert refusal(router, api, "frobnicate", 1) == (400, True)


def test_count_tokens_takes_what_the_client_sends(router):
    values = {"messages": [{"role": "user", "content": "x"}], "model": "m", "system": "s", "tools": FUNCTIONS["anthropic"],
              "tool_choice": {"type": "auto"}, "thinking": {"type": "adaptive"}, "output_config": {"effort": "low"},
              "cache_control": {"type": "ephemeral"}, "speed": "standard", "user_profile_id": "u", "workspace_id": "w"}
    assert set(values) == client_names()["count"]
    status, r = post(router, "/v1/messages/count_tokens", values)
    assert status == 200 and r["input_tokens"] > 50
    status, r = post(router, "/v1/messages/count_tokens", {**values, "max_tokens": 5})
    assert status == 400 and "max_tokens" in r["error"]["message"]


def test_reads_alone_are_open_to_all_methods_they_name(router):
    for path in "/v1/models", "/v1/models/mock", "/get_model_info", "/model_info", "/get_server_info", "/v1/loads":
        assert http_get(router.url + path)[0] == 200
    assert http_get(router.url + "/v1/models/other")[0] == 404
