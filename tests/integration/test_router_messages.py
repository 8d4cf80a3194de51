"""Anthropic's Messages API before mock workers, with the anthropic client."""
import json
import urllib.request

import anthropic
import pytest

from conftest import SLOW, http_get, wait_until
from mock_cluster import MockCluster, directive, post, sse

TOOLS = [{"name": "get_weather", "description": "d", "input_schema": {
    "type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}}}]
CALL = ('\n\n<｜DSML｜tool_calls>\n<｜DSML｜invoke name="get_weather">\n'
        '<｜DSML｜parameter name="city" string="true">Zürich "am See"</｜DSML｜parameter>\n'
        '<｜DSML｜parameter name="days" string="false">3</｜DSML｜parameter>\n'
        '</｜DSML｜invoke>\n<｜DSML｜invoke name="get_weather">\n'
        '<｜DSML｜parameter name="city" string="true">Bern</｜DSML｜parameter>\n'
        '</｜DSML｜invoke>\n</｜DSML｜tool_calls>')
THINK = {"type": "enabled", "budget_tokens": 1024}


@pytest.fixture(scope="module")
def router(tmp_path_factory, tokenizer_json):
    c = MockCluster(tmp_path_factory.mktemp("router"), tokenizer_json, router_args=["--keep-alive-secs", "1"])
    yield c
    c.stop()


def client(c):
    return anthropic.Anthropic(base_url=c.url, api_key="none", max_retries=0, timeout=60 * SLOW)


def ask(c, do, **kw):
    kw.setdefault("max_tokens", 4000)
    return client(c).messages.create(model="m", messages=[{"role": "user", "content": directive(**do)}], **kw)


def final(c, do, **kw):
    """The message that the client's helper puts together from a stream."""
    kw.setdefault("max_tokens", 4000)
    with client(c).messages.stream(model="m", messages=[{"role": "user", "content": directive(**do)}], **kw) as s:
        return s.get_final_message()


def prompt_of(c, body, path="/v1/messages"):
    """The prompt that a request becomes, as text: the report's ids."""
    ids = report(c, body, path)["prompt"]
    return post(c, "/detokenize", {"tokens": ids})[1]["text"]


def report(c, body, path="/v1/messages"):
    status, r = post(c, path, {"model": "m", "max_tokens": 6000, **body})
    assert status == 200, r
    return json.loads(next(b["text"] for b in r["content"] if b["type"] == "text"))


@pytest.mark.parametrize("batch", [1, 3, 1000])
def test_a_message_is_the_same_whole_and_streamed(router, batch):
    do = {"text": "I think 世界.</think>Hello 😀!", "batch": batch}
    whole = ask(router, do, thinking=THINK)
    assert [b.type for b in whole.content] == ["thinking", "text"]
    assert (whole.content[0].thinking, whole.content[1].text) == ("I think 世界.", "Hello 😀!")
    assert (whole.stop_reason, whole.stop_sequence, whole.role, whole.type) == ("end_turn", None, "assistant", "message")
    assert whole.id.startswith("msg_") and whole.content[0].signature == whole.id
    u = whole.usage
    # the mock says that one token of the prompt was cached
    assert u.cache_read_input_tokens == 1 and u.input_tokens > 5 and u.cache_creation_input_tokens == 0
    assert u.output_tokens > u.output_tokens_details.thinking_tokens > 2
    streamed = final(router, do, thinking=THINK)
    assert [b.to_dict() | {"signature": None} for b in streamed.content] == [
        b.to_dict() | {"signature": None} for b in whole.content]
    assert streamed.content[0].signature == streamed.id
    assert (streamed.usage, streamed.stop_reason) == (u, "end_turn")


def test_the_events_stand_in_the_order_that_clients_expect(router):
    events = sse(router, "/v1/messages", {
        "model": "m", "max_tokens": 4000, "stream": True, "thinking": THINK, "tools": TOOLS,
        "messages": [{"role": "user", "content": directive(text="a b</think>c d" + CALL, batch=2)}]})
    assert all(name == json.loads(data)["type"] for name, data in events)
    names, open_block, blocks = [n for n, _ in events], None, []
    assert names[0] == "message_start" and names[-2:] == ["message_delta", "message_stop"]
    for name, data in events[1:-2]:
        e = json.loads(data)
        if name == "content_block_start":
            assert open_block is None and e["index"] == len(blocks)
            open_block = e["index"]
            blocks.append((e["content_block"]["type"], set()))
        else:
            assert e["index"] == open_block
            if name == "content_block_stop":
                open_block = None
            else:
                blocks[-1][1].add(e["delta"]["type"])
    assert blocks == [("thinking", {"thinking_delta", "signature_delta"}), ("text", {"text_delta"}),
                      ("tool_use", {"input_json_delta"}), ("tool_use", {"input_json_delta"})]
    assert open_block is None and "[DONE]" not in str(events)


@pytest.mark.parametrize("batch", [1, 1000])
def test_tools_are_called(router, batch):
    do = {"text": "Let me see." + CALL, "batch": batch}
    for m in ask(router, do, tools=TOOLS), final(router, do, tools=TOOLS):
        assert [b.type for b in m.content] == ["text", "tool_use", "tool_use"]
        assert (m.content[0].text, m.stop_reason) == ("Let me see.", "tool_use")
        assert [(b.name, b.input) for b in m.content[1:]] == [
            ("get_weather", {"city": 'Zürich "am See"', "days": 3}), ("get_weather", {"city": "Bern"})]
        assert len({b.id for b in m.content[1:]}) == 2
    only = {"type": "auto", "disable_parallel_tool_use": True}
    for m in ask(router, do, tools=TOOLS, tool_choice=only), final(router, do, tools=TOOLS, tool_choice=only):
        assert [b.type for b in m.content] == ["text", "tool_use"] and m.stop_reason == "tool_use"


def test_arguments_that_are_cut_off_are_still_json(router):
    inputs = []
    for n in range(10, 60, 5):
        m = ask(router, {"text": CALL}, tools=TOOLS, max_tokens=n)
        assert m.stop_reason == "max_tokens" and m.usage.output_tokens == n
        inputs += [b.input for b in m.content if b.type == "tool_use"]
    cut = [i["INVALID_JSON"] for i in inputs if "INVALID_JSON" in i]
    assert cut and all(c.startswith('{"city": "Z') for c in cut)


def test_why_it_stopped(router):
    do = {"text": "one two three"}
    for make in ask, final:
        m = make(router, do, stop_sequences=["three", "two"])
        assert (m.stop_reason, m.stop_sequence, m.content[0].text) == ("stop_sequence", "two", "one ")
        m = make(router, {"text": "w " * 50}, max_tokens=7)
        assert (m.stop_reason, m.usage.output_tokens) == ("max_tokens", 7)


def test_thinking_is_off_unless_asked_for(router):
    def start(**kw):
        return prompt_of(router, {"messages": [{"role": "user", "content": directive(report="ids")}], **kw})[-10:]
    assert start().endswith("</think>")
    assert start(thinking={"type": "disabled"}).endswith("</think>")
    assert start(thinking={"type": "disabled"}, output_config={"effort": "high"}).endswith("</think>")
    for on in ({"thinking": {"type": "adaptive"}}, {"thinking": THINK}, {"output_config": {"effort": "low"}}):
        assert start(**on).endswith("<think>")
    m = ask(router, {"text": "secret</think>b"}, thinking={**THINK, "display": "omitted"})
    assert [b.type for b in m.content] == ["thinking", "text"] and m.content[0].thinking == ""
    m = final(router, {"text": "secret</think>b"}, thinking={**THINK, "display": "omitted"})
    assert [b.type for b in m.content] == ["thinking", "text"] and m.content[0].thinking == ""


def test_a_conversation_renders_as_the_same_chat_does(router):
    body = {
        "system": [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}],
        "tools": TOOLS, "thinking": THINK,
        "messages": [
            {"role": "user", "content": "weather?"},
            {"role": "assistant", "content": [
                {"type": "thinking", "thinking": "I must look.", "signature": "s"},
                {"type": "text", "text": "Looking."},
                {"type": "tool_use", "id": "a", "name": "get_weather", "input": {"city": "Bern", "days": 2}},
                {"type": "tool_use", "id": "b", "name": "get_weather", "input": {"city": "Genf"}}]},
            {"role": "user", "content": [
                {"type": "tool_result", "tool_use_id": "b", "content": [{"type": "text", "text": "rain"}]},
                {"type": "tool_result", "tool_use_id": "a", "is_error": True},
                {"type": "text", "text": "well?"}, {"type": "text", "text": directive(report="ids")}]}]}
    chat = {
        "thinking": {"type": "enabled"},
        "tools": [{"type": "function", "function": {"name": "get_weather", "description": "d",
                                                    "parameters": TOOLS[0]["input_schema"]}}],
        "messages": [
            {"role": "system", "content": "Be brief."}, {"role": "user", "content": "weather?"},
            {"role": "assistant", "reasoning_content": "I must look.", "content": "Looking.", "tool_calls": [
                {"id": "a", "type": "function", "function": {"name": "get_weather",
                                                             "arguments": '{"city": "Bern", "days": 2}'}},
                {"id": "b", "type": "function", "function": {"name": "get_weather", "arguments": '{"city":"Genf"}'}}]},
            {"role": "tool", "tool_call_id": "b", "content": "rain"},
            {"role": "tool", "tool_call_id": "a", "content": ""},
            {"role": "user", "content": [{"type": "text", "text": "well?"},
                                         {"type": "text", "text": directive(report="ids")}]}]}
    ids = report(router, body)["prompt"]
    assert ids == post(router, "/tokenize", chat)[1]["tokens"]
    counted = client(router).messages.count_tokens(model="m", **body)
    assert counted.input_tokens == len(ids)


def test_counting_takes_any_length_and_the_same_body(router):
    n = client(router).messages.count_tokens(model="m", messages=[{"role": "user", "content": "word " * 30000}])
    assert n.input_tokens > 30000
    status, r = post(router, "/v1/messages/count_tokens", {"model": "m", "messages": []})
    assert (status, r["error"]["type"]) == (400, "invalid_request_error") and "messages" in r["error"]["message"]


def test_an_assistant_message_at_the_end_is_gone_on_with(router):
    text = prompt_of(router, {"messages": [{"role": "user", "content": directive(report="ids")},
                                           {"role": "assistant", "content": "It begins"}]})
    assert text.endswith("It begins")


def test_errors_have_the_shape_that_clients_expect(router):
    with pytest.raises(anthropic.BadRequestError) as e:
        ask(router, {"text": "a"}, extra_body={"temperature": 2})
    assert e.value.body["type"] == "error" and e.value.body["error"]["type"] == "invalid_request_error"
    assert "temperature" in e.value.body["error"]["message"]
    assert e.value.request_id and e.value.request_id == e.value.body["request_id"]
    with pytest.raises(anthropic.APIStatusError) as e:
        ask(router, {"text": "a", "fail_after": 0, "message": "for a test"})
    assert e.value.status_code >= 400 and "for a test" in str(e.value)
    with pytest.raises(anthropic.APIStatusError) as e:
        final(router, {"text": "a b c d", "fail_after": 2, "message": "for a test"})
    assert "for a test" in str(e.value)
    status, body = http_get(router.url + "/v1/messages")
    assert status == 405 and json.loads(body)["type"] == "error"


def test_the_key_may_come_as_anthropics_do(tmp_path, tokenizer_json):
    c = MockCluster(tmp_path, tokenizer_json, router_args=["--api-key", "open-sesame"], start=False)
    try:
        wait_until("ready", lambda: http_get(c.url + "/ready")[0] == 200)
        with pytest.raises(anthropic.AuthenticationError):
            ask(c, {"text": "a"})
        for kw in {"api_key": "open-sesame"}, {"auth_token": "open-sesame", "api_key": None}:
            a = anthropic.Anthropic(base_url=c.url, max_retries=0, **kw)
            m = a.messages.create(model="m", max_tokens=9, messages=[{"role": "user", "content": directive(text="a")}])
            assert m.content[0].text == "a" and m._request_id
    finally:
        c.stop()


def test_a_silent_stream_is_kept_alive_by_pings(router):
    events = sse(router, "/v1/messages", {
        "model": "m", "max_tokens": 100, "stream": True,
        "messages": [{"role": "user", "content": directive(text="a b", batch=1, interval_ms=2500)}]})
    assert "ping" in [n for n, _ in events] and events[-1][0] == "message_stop"
    body = {"stream": True, "messages": [{"role": "user", "content": directive(text="a b", interval_ms=2500)}]}
    r = urllib.request.Request(router.url + "/v1/chat/completions", data=json.dumps(body).encode(), method="POST")
    with urllib.request.urlopen(r, timeout=60 * SLOW) as f:
        text = f.read().decode()
    assert "\n\n: keep-alive\n\n" in text and text.endswith("data: [DONE]\n\n")


def test_models_are_listed_for_both_kinds_of_clients(router):
    (a,), (o,) = client(router).models.list().data, router.client().models.list().data
    assert a.id == o.id == a.display_name == "mock" and a.type == "model" and a.created_at.timestamp() == o.created
    assert client(router).models.retrieve("mock").id == router.client().models.retrieve("mock").id == "mock"


IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aGk="}}
DOCUMENT = {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "hi"}}
USER = [{"role": "user", "content": directive(report=True)}]


@pytest.mark.parametrize("change,named", [
    ({"messages": [{"role": "user", "content": [IMAGE]}]}, '"image"'),
    ({"messages": [{"role": "user", "content": [DOCUMENT]}]}, '"document"'),
    ({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": [
        {"type": "redacted_thinking", "data": "x"}]}]}, "messages[1].content[0]"),
    ({"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, {
        "type": "tool_result", "tool_use_id": "a"}]}]}, "messages[0].content[1]"),
    ({"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": [
        {"type": "tool_result", "tool_use_id": "a", "content": [IMAGE]}]}]}, "messages[1].content[0].content[0]"),
    ({"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": [
        {"type": "tool_result", "tool_use_id": "a"}]}]}, "messages[1]"),
    ({"messages": [{"role": "system", "content": "a"}]}, "messages[0].role"),
    ({"messages": [{"role": "user", "content": []}]}, "messages[0].content"),
    ({"messages": [{"role": "assistant", "content": [{"type": "tool_use", "id": "a", "name": "f", "input": "x"}]}]},
     "messages[0].content[0].input"),
    ({"system": [IMAGE]}, "system[0]"), ({"system": 5}, "system"),
    ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "web_search_20250305"),
    ({"tools": [{"name": "f"}]}, "tools[0].input_schema"),
    ({"tools": [{**TOOLS[0], "strict": True}]}, "strict"),
    ({"tools": TOOLS, "tool_choice": {"type": "tool", "name": "g"}}, "tool_choice"),
    ({"tools": TOOLS, "tool_choice": {"type": "some"}}, "tool_choice"),
    ({"tools": TOOLS, "tool_choice": {"type": "any"}, "thinking": {"type": "adaptive"}}, "tool_choice"),
    ({"thinking": {"type": "enabled"}}, "budget_tokens"),
    ({"thinking": {"type": "enabled", "budget_tokens": 1000}}, "budget_tokens"),
    ({"thinking": {"type": "enabled", "budget_tokens": 4000}}, "budget_tokens"),
    ({"thinking": {"type": "between_tools"}}, "thinking.type"),
    ({"output_config": {"effort": "some"}}, "output_config.effort"),
    ({"output_config": {"format": {"type": "xml"}}}, "output_config.format"),
    ({"output_config": {"effort": "max"}}, "393216"), ({"max_tokens": None}, "max_tokens"), ({"model": None}, "model"),
])
def test_what_is_not_served_is_refused_by_name(router, change, named):
    status, r = post(router, "/v1/messages", {"model": "m", "max_tokens": 2000, "messages": USER, **change})
    assert status == 400 and r["type"] == "error" and named in r["error"]["message"] + r.get("param", ""), r
