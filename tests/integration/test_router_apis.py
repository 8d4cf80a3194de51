"""The router's other APIs before mock workers: completions, tokens, what it says about itself."""
import json
import urllib.error
import urllib.request

import openai
import pytest

from conftest import SLOW, http_get, wait_until
from mock_cluster import MockCluster, directive


@pytest.fixture(scope="module")
def router(tmp_path_factory, tokenizer_json):
    c = MockCluster(tmp_path_factory.mktemp("router"), tokenizer_json)
    yield c
    c.stop()


def post(c, path, body):
    """-> (status, object)"""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    r = urllib.request.Request(c.url + path, data=data, method="POST")
    try:
        with urllib.request.urlopen(r, timeout=30 * SLOW) as f:
            return f.status, json.loads(f.read())
    except urllib.error.HTTPError as e:
        return e.code, json.loads(e.read())


def complete(c, do, **kw):
    kw.setdefault("max_tokens", 1000)
    return c.client().completions.create(model="m", prompt=directive(**do), **kw)


@pytest.mark.parametrize("batch", [1, 3, 1000])
def test_a_completion_is_raw_text_whole_and_streamed(router, batch):
    text = "<think>a</think>b</think><｜DSML｜tool_calls> 世界 😀"
    r = complete(router, {"text": text, "batch": batch})
    assert (r.choices[0].text, r.choices[0].finish_reason, r.object) == (text, "stop", "text_completion")
    assert r.id.startswith("cmpl-") and r.usage.completion_tokens > 5
    got, finish, usage = "", None, None
    for chunk in complete(router, {"text": text, "batch": batch}, stream=True,
                          stream_options={"include_usage": True}):
        usage = chunk.usage or usage
        for c in chunk.choices:
            got += c.text
            finish = c.finish_reason or finish
    assert (got, finish, usage) == (text, "stop", r.usage)


def test_stop_length_and_defaults_of_completions(router):
    r = complete(router, {"text": "one two three"}, stop=["two"])
    assert (r.choices[0].text, r.choices[0].finish_reason) == ("one ", "stop")
    r = router.client().completions.create(model="m", prompt=directive(text="w " * 50))
    assert r.usage.completion_tokens == 16 and r.choices[0].finish_reason == "length"


def test_several_prompts_and_token_prompts(router):
    r = router.client().completions.create(model="m", n=2, max_tokens=100, prompt=[
        directive(text="first"), directive(text="second")])
    assert [(c.index, c.text) for c in r.choices] == [(0, "first"), (1, "first"), (2, "second"), (3, "second")]
    ids = post(router, "/tokenize", {"prompt": directive(text="by ids")})[1]["tokens"]
    r = router.client().completions.create(model="m", max_tokens=100, prompt=ids)
    assert r.choices[0].text == "by ids" and r.usage.prompt_tokens == len(ids)
    r = router.client().completions.create(model="m", max_tokens=100, prompt=[ids, ids])
    assert [c.text for c in r.choices] == ["by ids", "by ids"]


def test_raw_prompts_are_tokenized_with_the_full_vocabulary(router):
    r = complete(router, {"report": True})
    plain = json.loads(r.choices[0].text)["n_prompt"]
    r = router.client().completions.create(model="m", max_tokens=1000,
                                           prompt="<｜User｜>" + directive(report=True))
    assert json.loads(r.choices[0].text)["n_prompt"] == plain + 1


@pytest.mark.parametrize("field,value", [
    ("prompt", ""), ("prompt", []), ("prompt", None), ("prompt", 5), ("prompt", {}), ("prompt", [1.5]),
    ("prompt", [-1]), ("prompt", [129280]), ("prompt", ["a", 5]), ("prompt", ["x"] * 65),
    ("echo", 1), ("suffix", "x"), ("logprobs", -1), ("best_of", 2), ("max_tokens", 0), ("messages", []),
    ("max_completion_tokens", 5), ("tools", []),
])
def test_bad_completion_fields_are_refused_by_name(router, field, value):
    status, body = post(router, "/v1/completions", {"model": "m", "prompt": "x", field: value})
    assert status == 400 and field in body["error"]["message"], body


def test_a_failing_completion_stream_ends_with_an_error_event(router):
    with pytest.raises(openai.APIError) as e:
        for _ in complete(router, {"text": "a b c d", "fail_after": 2, "message": "for a test"}, stream=True):
            pass
    assert "for a test" in str(e.value)
    with pytest.raises(openai.APIStatusError):
        complete(router, {"text": "a", "fail_after": 0})


def test_text_to_tokens_and_back(router):
    text = "Grüße, 世界! <｜User｜>\n\n👩‍👩‍👧"
    status, got = post(router, "/tokenize", {"model": "m", "prompt": text})
    assert status == 200 and got["count"] == len(got["tokens"]) and got["max_model_len"] == 8192
    assert 128803 in got["tokens"]
    assert post(router, "/detokenize", {"tokens": got["tokens"]}) == (200, {"text": text})
    status, many = post(router, "/tokenize", {"prompt": [text, "x"]})
    assert many["tokens"][0] == got["tokens"] and many["count"][1] == len(many["tokens"][1])
    assert post(router, "/detokenize", {"tokens": many["tokens"]}) == (200, {"text": [text, "x"]})
    status, chat = post(router, "/tokenize", {"messages": [{"role": "user", "content": "x"}]})
    assert status == 200 and chat["tokens"][0] == 0 and chat["tokens"][-1] == 128821


@pytest.mark.parametrize("path,body", [
    ("/tokenize", {}), ("/tokenize", {"prompt": 5}), ("/tokenize", {"prompt": ["a", 5]}), ("/tokenize", b"{"),
    ("/tokenize", {"messages": []}), ("/detokenize", {}), ("/detokenize", {"tokens": "x"}),
    ("/detokenize", {"tokens": [129280]}), ("/detokenize", {"tokens": [-1]}), ("/detokenize", {"tokens": [1.5]}),
    ("/detokenize", {"tokens": [[1], 2]}), ("/detokenize", {"tokens": ["a"]}), ("/tokenize", []),
])
def test_bad_token_requests_are_refused(router, path, body):
    status, got = post(router, path, body)
    assert status == 400 and got["error"]["message"], got


def test_what_the_router_says_about_itself(router):
    status, text = http_get(router.url + "/model_info")
    info = json.loads(text)
    assert status == 200 and info["context_length"] == 8192 and info["is_generation"] is True
    status, text = http_get(router.url + "/health_generate")
    assert status == 200 and json.loads(text)["path"]["transport"] == "mock"
    router.decodes[0].kill()
    wait_until("not ready", lambda: http_get(router.url + "/ready")[0] == 503)
    assert http_get(router.url + "/health_generate")[0] == 503
    router.start_decode(0)
    wait_until("ready", router.ready)


def generate(c, do, sampling=None, **kw):
    return post(c, "/generate", {"text": directive(**do), "sampling_params": sampling or {}, **kw})


def events(c, path, body):
    r = urllib.request.Request(c.url + path, data=json.dumps(body).encode(), method="POST")
    with urllib.request.urlopen(r, timeout=30 * SLOW) as f:
        return [line[6:] for line in f.read().decode().splitlines() if line.startswith("data: ")]


@pytest.mark.parametrize("batch", [1, 4, 1000])
def test_generate_answers_whole_and_streams_all_the_text_so_far(router, batch):
    text = "<think>a</think>b\n 世界 😀"
    do = {"text": text, "batch": batch}
    status, r = generate(router, do, {"max_new_tokens": 100, "temperature": 0}, rid="my-rid")
    assert status == 200 and r["text"] == text
    m = r["meta_info"]
    assert m["id"] == "my-rid" and m["finish_reason"] == {"type": "stop"}
    assert m["completion_tokens"] >= len(r["output_ids"]) > 5 and m["prompt_tokens"] > 5
    status, back = post(router, "/detokenize", {"tokens": r["output_ids"]})
    assert status == 200 and back["text"].startswith(text)
    *got, done = events(router, "/generate", {"text": directive(**do), "stream": True,
                                              "sampling_params": {"max_new_tokens": 100}})
    assert done == "[DONE]"
    got = [json.loads(e) for e in got]
    for a, b in zip(got, got[1:]):
        assert b["text"].startswith(a["text"])
        assert b["meta_info"]["completion_tokens"] >= a["meta_info"]["completion_tokens"]
    assert got[-1]["text"] == text and got[-1]["meta_info"]["finish_reason"] == {"type": "stop"}
    assert all(e["meta_info"]["finish_reason"] is None for e in got[:-1])


def test_generate_takes_lists_ids_and_several_answers(router):
    words = ["one", "two two"]
    status, r = post(router, "/generate", {"text": [directive(text=w) for w in words]})
    assert status == 200 and [a["text"] for a in r] == words
    assert [a["index"] for a in r] == [0, 1]
    status, tokens = post(router, "/tokenize", {"prompt": directive(text="ids")})
    ids = tokens["tokens"]
    status, r = post(router, "/generate", {"input_ids": ids, "sampling_params": {"n": 2}})
    assert status == 200 and [a["text"] for a in r] == ["ids", "ids"]
    assert [a["meta_info"]["prompt_tokens"] for a in r] == [len(ids)] * 2
    status, r = post(router, "/generate", {"text": [directive(text="alone")]})
    assert isinstance(r, list) and r[0]["text"] == "alone"
    status, r = generate(router, {"text": "w " * 200})
    assert r["meta_info"]["finish_reason"] == {"type": "length", "length": 128}
    status, r = generate(router, {"text": "one two three"}, {"stop": ["two"]})
    assert r["text"] == "one "


@pytest.mark.parametrize("body,param", [
    ({}, "text"), ({"text": "a", "input_ids": [1]}, "text"), ({"input_ids": "abc"}, "input_ids"),
    ({"input_ids": [1, -1]}, "input_ids"), ({"input_ids": []}, "input_ids"), ({"text": ""}, "text"),
    ({"text": "a", "return_logprob": True}, "return_logprob"), ({"text": "a", "nonsense": 1}, "nonsense"),
    ({"text": "a", "sampling_params": {"nonsense": 1}}, "sampling_params.nonsense"),
    ({"text": "a", "sampling_params": {"max_new_tokens": 0}}, "sampling_params.max_new_tokens"),
    ({"text": "a", "sampling_params": {"regex": "a+"}}, "sampling_params.regex"),
    ({"text": "a", "sampling_params": [{}]}, "sampling_params"),
])
def test_generate_refuses_by_name(router, body, param):
    status, r = post(router, "/generate", body)
    assert (status, r["error"]["param"]) == (400, param), r


def test_what_the_server_says_of_itself(router):
    for path in "/server_info", "/get_server_info":
        status, body = http_get(router.url + path)
        info = json.loads(body)
        assert status == 200 and info["is_generation"]
        assert info["prefill_ready"] > 0 and info["decode_ready"] > 0
        # SGLang's benchmark indexes these two when its run is over, and loses it where it cannot.
        assert "decode" not in info and "prefill" not in info
        assert info["internal_states"][0].get("avg_spec_accept_length") is None
