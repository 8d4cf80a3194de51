"""OpenAI's Responses API before mock workers, with the openai client."""
import json

import openai
import pydantic
import pytest

from conftest import http_get
from mock_cluster import MockCluster, directive, post, sse
from test_router_messages import CALL

TOOLS = [{"type": "function", "name": "get_weather", "description": "d", "strict": True, "parameters": {
    "type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}}}]
OFF = {"effort": "none"}


@pytest.fixture(scope="module")
def router(tmp_path_factory, tokenizer_json):
    c = MockCluster(tmp_path_factory.mktemp("router"), tokenizer_json)
    yield c
    c.stop()


def ask(c, do, **kw):
    return c.client().responses.create(model="m", input=directive(**do), **kw)


def stream(c, do, **kw):
    """The events of a stream, checked as every stream must be."""
    events = list(c.client().responses.create(model="m", input=directive(**do), stream=True, **kw))
    assert [e.sequence_number for e in events] == list(range(len(events)))
    assert [e.type for e in events[:2]] == ["response.created", "response.in_progress"]
    assert events[0].response.status == "in_progress" and events[0].response.output == []
    opened, closed = [], []
    for e in events[2:-1]:
        if e.type == "response.output_item.added":
            assert len(opened) == len(closed) == e.output_index and e.item.status == "in_progress"
            opened.append(e.item)
        elif e.type == "response.output_item.done":
            assert e.output_index == len(closed) == len(opened) - 1 and e.item.id == opened[-1].id
            closed.append(e.item)
        else:
            assert e.output_index == len(opened) - 1 == len(closed) and e.item_id == opened[-1].id
    assert len(opened) == len(closed)
    return events


def said(events, kind):
    return "".join(e.delta for e in events if e.type == f"response.{kind}.delta")


def plain(output):
    """Without what differs between two answers."""
    return [{k: v for k, v in item.to_dict().items() if k not in ("id", "call_id")} for item in output]


@pytest.mark.parametrize("batch", [1, 3, 1000])
def test_a_response_is_the_same_whole_and_streamed(router, batch):
    do = {"text": "I think 世界.</think>Hello 😀!", "batch": batch}
    r = ask(router, do, reasoning={"effort": "high"}, metadata={"a": "b"}, user="u")
    assert (r.status, r.object, r.output_text, r.store) == ("completed", "response", "Hello 😀!", False)
    assert r.id.startswith("resp_") and r.created_at and r.error is None and r.incomplete_details is None
    assert [i.type for i in r.output] == ["reasoning", "message"]
    assert r.output[0].content[0].text == "I think 世界." and r.output[0].summary == []
    assert (r.metadata, r.user, r.reasoning.effort, r.temperature) == ({"a": "b"}, "u", "high", 1.0)
    u = r.usage
    assert u.input_tokens_details.cached_tokens == 1 and u.total_tokens == u.input_tokens + u.output_tokens
    assert u.output_tokens > u.output_tokens_details.reasoning_tokens > 2
    events = stream(router, do, reasoning={"effort": "high"})
    last = events[-1]
    assert last.type == "response.completed" and last.response.usage == u
    assert plain(last.response.output) == plain(r.output) and last.response.output_text == r.output_text
    assert said(events, "reasoning_text") == "I think 世界." and said(events, "output_text") == "Hello 😀!"
    done = {e.type: e for e in events}
    assert done["response.output_text.done"].text == "Hello 😀!"
    assert done["response.reasoning_text.done"].text == "I think 世界."
    assert done["response.content_part.done"].part.text == "Hello 😀!"
    for i, item in enumerate(last.response.output):
        assert item.id == [e.item.id for e in events if e.type == "response.output_item.done"][i]


def test_the_events_are_named_on_the_wire_and_end_without_done(router):
    events = sse(router, "/v1/responses", {"model": "m", "input": directive(text="a"), "stream": True})
    assert all(name == json.loads(data)["type"] for name, data in events) and events[-1][0] == "response.completed"


@pytest.mark.parametrize("batch", [1, 1000])
def test_functions_are_called(router, batch):
    do = {"text": "Let me see." + CALL, "batch": batch}
    want = [("get_weather", {"city": 'Zürich "am See"', "days": 3}), ("get_weather", {"city": "Bern"})]
    r = ask(router, do, tools=TOOLS, reasoning=OFF)
    assert r.output_text == "Let me see." and r.tools[0].name == "get_weather" and r.tool_choice == "auto"
    events = stream(router, do, tools=TOOLS, reasoning=OFF)
    for output in r.output, events[-1].response.output:
        assert [(i.name, json.loads(i.arguments)) for i in output[1:]] == want
        assert len({i.call_id for i in output[1:]}) == 2 and {i.status for i in output} == {"completed"}
    done = [e for e in events if e.type == "response.function_call_arguments.done"]
    assert [(e.name, json.loads(e.arguments)) for e in done] == want
    assert said(events, "function_call_arguments") == "".join(e.arguments for e in done)
    r = ask(router, do, tools=TOOLS, reasoning=OFF, parallel_tool_calls=False)
    assert len(r.output) == 2 and r.parallel_tool_calls is False


def test_the_helpers_of_the_client_work(router):
    class Answer(pydantic.BaseModel):
        city: str

    with router.client().responses.stream(model="m", input=directive(text='{"city": "Bern"}'), reasoning=OFF,
                                          text_format=Answer) as s:
        for _ in s:
            pass
        r = s.get_final_response()
    assert r.output_parsed == Answer(city="Bern")
    r = router.client().responses.parse(model="m", input=directive(text='{"city": "Genf"}'), reasoning=OFF,
                                        text_format=Answer, tools=[openai.pydantic_function_tool(Answer)["function"] | {
                                            "type": "function"}])
    assert r.output_parsed == Answer(city="Genf") and r.text.format.type == "json_schema"


def report(c, **body):
    status, r = post(c, "/v1/responses", {"model": "m", "max_output_tokens": 6000, **body})
    assert status == 200, r
    return json.loads(r["output"][-1]["content"][0]["text"])


def test_a_conversation_renders_as_the_same_chat_does(router):
    items = [
        {"role": "user", "content": "weather?"},
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "I must"},
                                                                       {"type": "reasoning_text", "text": "look."}]},
        {"type": "message", "role": "assistant", "id": "msg_1", "status": "completed",
         "content": [{"type": "output_text", "text": "Looking.", "annotations": []}]},
        {"type": "function_call", "call_id": "a", "name": "get_weather", "arguments": '{"city": "Bern"}', "id": "fc_1"},
        {"type": "function_call", "call_id": "b", "name": "get_weather", "arguments": '{"city": "Genf"}'},
        {"type": "function_call_output", "call_id": "b", "output": "rain"},
        {"type": "function_call_output", "call_id": "a", "output": [{"type": "input_text", "text": "sun"}]},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": directive(report="ids")}]}]
    calls = [{"id": i, "type": "function", "function": {"name": "get_weather", "arguments": json.dumps({"city": c})}}
             for i, c in (("a", "Bern"), ("b", "Genf"))]
    chat = {"reasoning_effort": "high", "tools": [{"type": "function", "function": {
        k: TOOLS[0][k] for k in ("name", "description", "parameters")}}], "messages": [
        {"role": "system", "content": "Be brief."}, {"role": "user", "content": "weather?"},
        {"role": "assistant", "reasoning_content": "I must\nlook.", "content": "Looking.", "tool_calls": calls},
        {"role": "tool", "tool_call_id": "b", "content": "rain"},
        {"role": "tool", "tool_call_id": "a", "content": "sun"},
        {"role": "user", "content": directive(report="ids")}]}
    got = report(router, instructions="Be brief.", tools=TOOLS, reasoning={"effort": "high"}, input=items)
    assert got["prompt"] == post(router, "/tokenize", chat)[1]["tokens"]


def test_what_was_answered_can_be_sent_back(router):
    c = router.client()
    first = c.responses.create(model="m", input=directive(text="Hm.</think>" + CALL), tools=TOOLS,
                               include=["reasoning.encrypted_content"], store=False)
    assert [i.type for i in first.output] == ["reasoning", "function_call", "function_call"]
    items = [{"role": "user", "content": "x"}, *first.output]
    items += [{"type": "function_call_output", "call_id": i.call_id, "output": "rain"} for i in first.output[1:]]
    items += [{"role": "user", "content": directive(text="done")}]
    assert c.responses.create(model="m", input=items, tools=TOOLS, reasoning=OFF).output_text == "done"


def test_sampling_and_limits_reach_the_worker(router):
    got = report(router, input=directive(report=True), temperature=0.5, top_p=0.25, top_k=7, min_p=0.125,
                 presence_penalty=0.5, frequency_penalty=0.25, repetition_penalty=1.5, priority=3, request_id="mine")
    want = {"temperature": 0.5, "top_p": 0.25, "top_k": 7, "min_p": 0.125, "presence_penalty": 0.5,
            "frequency_penalty": 0.25, "repetition_penalty": 1.5, "priority": 3, "rid": "mine",
            "max_new_tokens": 6000}
    assert {k: got[k] for k in want} == want
    r = ask(router, {"text": "w " * 50}, max_output_tokens=17, reasoning=OFF)
    assert (r.status, r.incomplete_details.reason, r.usage.output_tokens) == ("incomplete", "max_output_tokens", 17)
    assert r.output[0].status == "incomplete" and r.max_output_tokens == 17
    events = stream(router, {"text": "w " * 50}, max_output_tokens=17, reasoning=OFF)
    assert events[-1].type == "response.incomplete" and events[-1].response.status == "incomplete"


def test_logprobs_stand_beside_their_text(router):
    kw = {"include": ["message.output_text.logprobs"], "top_logprobs": 2}
    do = {"text": "think</think>one two three"}
    r = ask(router, do, **kw)
    whole = [(x.token, x.logprob) for x in r.output[1].content[0].logprobs]
    assert "".join(t for t, _ in whole).startswith("one two three")
    assert all(len(x.top_logprobs) == 2 for x in r.output[1].content[0].logprobs)
    assert all(b < a for (_, a), (_, b) in zip(whole, whole[1:]))
    events = stream(router, do, **kw)
    streamed = [(x.token, x.logprob) for e in events if e.type == "response.output_text.delta" for x in e.logprobs]
    kept = [(x.token, x.logprob) for x in events[-1].response.output[1].content[0].logprobs]
    assert streamed == kept == whole[:len(kept)] and len(whole) - len(kept) <= 1


def test_a_failing_stream_ends_as_failed(router):
    events = list(router.client().responses.create(
        model="m", input=directive(text="a b c d", fail_after=2, message="for a test"), reasoning=OFF, stream=True))
    assert events[-1].type == "response.failed" and events[-1].response.status == "failed"
    assert "for a test" in events[-1].response.error.message
    with pytest.raises(openai.APIStatusError):
        ask(router, {"text": "a", "fail_after": 0})


def test_nothing_is_kept(router):
    status, body = http_get(router.url + "/v1/responses/resp_abc")
    assert status == 404 and "keeps no responses" in json.loads(body)["error"]["message"]
    with pytest.raises(openai.NotFoundError):
        router.client().responses.retrieve("resp_abc")
    with pytest.raises(openai.NotFoundError):
        router.client().responses.cancel("resp_abc")


ITEM = {"role": "user", "content": "x"}


@pytest.mark.parametrize("change,param", [
    ({"input": None}, "input"), ({"input": []}, "input"), ({"input": 5}, "input"),
    ({"input": [{"type": "item_reference", "id": "a"}]}, "input[0].type"),
    ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, "input[0].content"),
    ({"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "x"}]}]}, "input[0].content"),
    ({"input": [{"role": "friend", "content": "x"}]}, "input[0].role"),
    ({"input": [ITEM, {"type": "function_call_output", "call_id": "a", "output": "x"}]}, "input[1]"),
    ({"input": [ITEM, {"type": "function_call", "call_id": "a", "name": "f", "arguments": "{}"}, ITEM]},
     "input[1].tool_calls"),
    ({"input": [ITEM, {"type": "function_call", "call_id": "a", "name": "f"}]}, "input[1]"),
    ({"input": [{"type": "reasoning", "summary": [], "encrypted_content": "x"}, ITEM]}, "input[0].encrypted_content"),
    ({"input": [{"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "x"}]}, ITEM]},
     "input[0]"),
    ({"instructions": 5}, "instructions"),
    ({"tools": [{"type": "web_search"}]}, "tools[0]"), ({"tools": [{"type": "function"}]}, "tools[0]"),
    ({"tools": TOOLS, "tool_choice": {"type": "function", "name": "g"}}, "tool_choice"),
    ({"tools": TOOLS, "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": []}}, "tool_choice"),
    ({"tool_choice": "sometimes"}, "tool_choice"),
    ({"include": ["file_search_call.results"]}, "include"),
    ({"text": {"format": {"type": "xml"}}}, "text.format"), ({"text": {"format": {"type": "json_schema"}}}, "text.format"),
    ({"text": {"format": {"type": "json_object"}}}, "input"), ({"text": {"verbosity": "low"}}, "text.verbosity"),
    ({"reasoning": {"effort": "some"}}, "reasoning_effort"), ({"reasoning": {"effort": "max"}}, "reasoning_effort"),
    ({"reasoning": {"summary": "detailed"}}, "reasoning.summary"),
    ({"previous_response_id": "resp_1"}, "previous_response_id"), ({"store": True}, "store"),
    ({"background": True}, "background"), ({"conversation": "c"}, "conversation"), ({"truncation": "auto"}, "truncation"),
    ({"prompt": {"id": "p"}}, "prompt"),
])
def test_what_is_not_served_is_refused_by_name(router, change, param):
    status, r = post(router, "/v1/responses", {"model": "m", "input": "x", **change})
    assert (status, r["error"]["param"]) == (400, param), r
