"""The router's other APIs before mock workers: completions, tokens, what it says about itself."""
import json
import random
import threading
import urllib.request

import openai
import pytest

from conftest import SLOW, http_get, wait_until
from mock_cluster import MockCluster, directive, post
from test_router_messages import CALL


EOS = 1


@pytest.fixture(scope="module")
def router(tmp_path_factory, tokenizer_json):
    c = MockCluster(tmp_path_factory.mktemp("router"), tokenizer_json)
    yield c
    c.stop()


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
    assert m["id"] == "my-rid" and m["finish_reason"] == {"type": "stop", "matched": EOS}
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
    assert got[-1]["text"] == text and got[-1]["meta_info"]["finish_reason"] == {"type": "stop", "matched": EOS}
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
    assert r["text"] == "one " and r["meta_info"]["finish_reason"] == {"type": "stop", "matched": "two"}
    status, r = generate(router, {"text": "x"}, {"max_new_tokens": 0})
    assert (status, r["text"], r["meta_info"]["completion_tokens"]) == (200, "", 0)


@pytest.mark.parametrize("body,param", [
    ({}, "text"), ({"text": "a", "input_ids": [1]}, "text"), ({"input_ids": "abc"}, "input_ids"),
    ({"input_ids": [1, -1]}, "input_ids"), ({"input_ids": []}, "input_ids"), ({"text": ""}, "text"),
    ({"text": "a", "return_logprob": 1}, "return_logprob"), ({"text": "a", "nonsense": 1}, "nonsense"),
    ({"text": "a", "return_logprob": True, "logprob_start_len": 99}, "logprob_start_len"),
    ({"text": "a", "token_ids_logprob": [1]}, "token_ids_logprob"),
    ({"text": "a", "top_logprobs_num": 129}, "top_logprobs_num"), ({"text": "a", "rid": ["a"]}, "rid"),
    ({"text": "a", "sampling_params": {"nonsense": 1}}, "sampling_params.nonsense"),
    ({"text": "a", "sampling_params": {"max_new_tokens": -1}}, "sampling_params.max_new_tokens"),
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


def test_generate_tells_log_probabilities_as_sglang_does(router):
    ids = post(router, "/tokenize", {"prompt": directive(text="a b c", batch=2)})[1]["tokens"]
    body = {"input_ids": ids, "return_logprob": True, "logprob_start_len": 0, "top_logprobs_num": 2,
            "return_text_in_logprobs": True, "sampling_params": {"max_new_tokens": 3}}
    status, r = post(router, "/generate", body)
    m = r["meta_info"]
    assert status == 200 and m["finish_reason"] == {"type": "length", "length": 3}
    # the mock: prompt token i >= 1 has -i / 16, output token k has -k / 8 (its header)
    assert [(x[0], x[1]) for x in m["input_token_logprobs"]] == [
        (None if i == 0 else -i / 16, t) for i, t in enumerate(ids)]
    assert [(x[0], x[1]) for x in m["output_token_logprobs"]] == [
        (-k / 8, t) for k, t in enumerate(r["output_ids"])]
    assert "".join(x[2] for x in m["output_token_logprobs"]) == r["text"]
    assert m["output_token_logprobs_length"] == 3
    assert m["input_top_logprobs"][0] is None and all(len(x) == 2 for x in m["input_top_logprobs"][1:])
    assert [x[0][:2] for x in m["output_top_logprobs"]] == [x[:2] for x in m["output_token_logprobs"]]
    # from the middle of the prompt, without text
    status, part = post(router, "/generate", {**body, "logprob_start_len": 5, "top_logprobs_num": 0,
                                              "return_text_in_logprobs": False})
    assert part["meta_info"]["input_token_logprobs"] == [[*x[:2], None] for x in m["input_token_logprobs"][5:]]
    assert "input_top_logprobs" not in part["meta_info"]
    # of the output alone; and nothing where nothing was asked
    status, out = post(router, "/generate", {**body, "logprob_start_len": -1})
    assert out["meta_info"]["input_token_logprobs"] == []
    assert out["meta_info"]["output_token_logprobs"] == m["output_token_logprobs"]
    status, none = post(router, "/generate", {**body, "return_logprob": False})
    assert status == 200 and not [k for k in none["meta_info"] if "logprob" in k]
    # scoring: no output at all
    status, score = post(router, "/generate", {**body, "sampling_params": {"max_new_tokens": 0}})
    assert (score["text"], score["meta_info"]["output_token_logprobs"]) == ("", [])
    assert score["meta_info"]["input_token_logprobs"] == m["input_token_logprobs"]
    # streamed events say all so far
    *got, done = [json.loads(e) if e != "[DONE]" else e for e in events(router, "/generate", {**body, "stream": True})]
    assert got[-1]["meta_info"]["output_token_logprobs"] == m["output_token_logprobs"]
    assert all(e["meta_info"]["input_token_logprobs"] == m["input_token_logprobs"] for e in got)


def salt(c, path, body):
    status, r = post(c, path, body)
    assert status == 200, r
    text = r["text"] if path == "/generate" else r["choices"][0].get("text") or r["choices"][0]["message"]["content"]
    return json.loads(text)["cache_salt"]


def test_prefixes_are_shared_within_one_salt_only(router):
    said = directive(report=True)
    bodies = {"/generate": {"text": said, "sampling_params": {"max_new_tokens": 999}},
              "/v1/completions": {"prompt": said, "max_tokens": 999},
              "/v1/chat/completions": {"messages": [{"role": "user", "content": said}]}}
    salts = {}
    for path, body in bodies.items():
        assert salt(router, path, body) == salt(router, path, {**body, "cache_salt": ""}) == "0" * 16
        for extra in {"cache_salt": "a"}, {"cache_salt": "b"}, {"extra_key": "a"}, {"cache_salt": "a", "extra_key": "a"}:
            salts.setdefault(json.dumps(extra), set()).add(salt(router, path, {**body, **extra}))
    assert all(len(s) == 1 for s in salts.values()) and len(set.union(*salts.values())) == 4


def in_thread(f):
    out = []
    t = threading.Thread(target=lambda: out.append(f()))
    t.start()
    return t, out


@pytest.fixture
def threads(tmp_path, tokenizer_json):
    """A router with two event loops and two pairs of workers."""
    c = MockCluster(tmp_path, tokenizer_json, n_decode=2, n_prefill=2, router_args=["--router-threads", "2"])
    yield c
    c.stop()


def test_requests_are_aborted_by_name_or_all(threads):
    long = directive(text="w " * 400, interval_ms=50)
    asked = [in_thread(lambda i=i: post(threads, "/generate", {
        "text": long, "rid": f"r{i}", "sampling_params": {"max_new_tokens": 400}})) for i in range(6)]
    wait_until("six run", lambda: sum(w["running"] for w in threads.workers() if w["role"] == "decode") >= 1 and
               sum(d.text().count("submit r") for d in threads.decodes) == 6)
    assert post(threads, "/abort_request", {"rid": "r3"}) == (200, {"success": True})
    asked[3][0].join(30 * SLOW)
    status, r = asked[3][1][0]
    assert status == 200 and r["meta_info"]["finish_reason"] == {"type": "abort"}
    assert all(t.is_alive() for i, (t, _) in enumerate(asked) if i != 3)
    wait_until("it is cancelled", lambda: any("cancel r3" in d.text() for d in threads.decodes))
    chat, got = in_thread(lambda: events(threads, "/v1/chat/completions", {
        "rid": "c", "stream": True, "messages": [{"role": "user", "content": long}]}))
    claude, told = in_thread(lambda: post(threads, "/v1/messages", {
        "rid": "m", "model": "m", "max_tokens": 999, "messages": [{"role": "user", "content": long}]}))
    wait_until("they run", lambda: sum(d.text().count("submit") for d in threads.decodes) == 8)
    assert post(threads, "/abort_request", {"rid": "nobody"})[0] == 200
    assert post(threads, "/abort_request", {"abort_all": True})[0] == 200
    for t, _ in [*asked, (chat, got), (claude, told)]:
        t.join(30 * SLOW)
    assert all(out[0][1]["meta_info"]["finish_reason"] == {"type": "abort"} for _, out in asked)
    assert got[0][-1] == "[DONE]" and json.loads(got[0][-2])["choices"][0]["finish_reason"] == "abort"
    assert told[0][0] == 499 and told[0][1]["error"]["message"] == "the request was aborted"
    assert post(threads, "/abort_request", {})[1]["error"]["param"] == "rid"
    assert post(threads, "/abort_request", {"rid": 5})[0] == post(threads, "/abort_request", b"[")[0] == 400


def test_flushing_reaches_every_worker(threads):
    for n, ask in enumerate([lambda: http_get(threads.url + "/flush_cache")[0],
                             lambda: post(threads, "/flush_cache", b"")[0]], 1):
        assert ask() == 200
        assert all(w.text().count("flush") == n for w in [*threads.decodes, *threads.prefills])
    threads.decodes[0].kill()
    status, r = post(threads, "/flush_cache", b"")
    assert status == 503 and str(threads.decode_ports[0]) in r["error"]["message"]
    assert str(threads.decode_ports[1]) not in r["error"]["message"]
    threads.start_decode(0)


def test_reasoning_may_come_in_one_piece(router):
    body = {"messages": [{"role": "user", "content": directive(text="a b c d</think>e f g")}], "stream": True}
    for extra, n in ({}, 4), ({"stream_reasoning": False}, 1):
        deltas = [json.loads(e)["choices"][0]["delta"] for e in events(router, "/v1/chat/completions", {
            **body, **extra})[:-1]]
        pieces = [d["reasoning_content"] for d in deltas if d.get("reasoning_content")]
        assert "".join(pieces) == "a b c d" and (len(pieces) == 1) == (n == 1)
        assert len([d for d in deltas if d.get("content")]) > 1
    cut = events(router, "/v1/chat/completions", {**body, "stream_reasoning": False, "max_tokens": 2})
    assert [json.loads(e)["choices"][0]["delta"].get("reasoning_content") for e in cut[1:-2]] == ["a b"]


def test_one_call_at_most_where_no_more_are_wanted(router):
    tools = [{"type": "function", "function": {"name": "get_weather"}}]
    body = {"messages": [{"role": "user", "content": directive(text="x</think>" + CALL)}], "tools": tools}
    for extra, n in ({}, 2), ({"parallel_tool_calls": True}, 2), ({"parallel_tool_calls": False}, 1):
        status, r = post(router, "/v1/chat/completions", {**body, **extra})
        assert len(r["choices"][0]["message"]["tool_calls"]) == n and r["choices"][0]["finish_reason"] == "tool_calls"


def test_the_most_effort_asks_for_a_long_context(tmp_path, router, tokenizer_json):
    body = {"messages": [{"role": "user", "content": directive(report=True)}], "reasoning_effort": "max"}
    status, r = post(router, "/v1/chat/completions", body)
    assert (status, r["error"]["param"]) == (400, "reasoning_effort") and "393216" in r["error"]["message"]
    off = {**body, "chat_template_kwargs": {"thinking": False}}
    assert post(router, "/v1/chat/completions", off)[0] == 200  # it does not think at all
    for kw in {"context": 393216}, {"router_args": ["--allow-think-max"]}:
        c = MockCluster(tmp_path, tokenizer_json, **kw)
        try:
            assert post(c, "/v1/chat/completions", body)[0] == 200
        finally:
            c.stop()


def test_clients_that_leave_at_any_point_leave_nothing_behind(threads):
    """Streams of every API, cut off at random, while others are aborted and caches are flushed."""
    said, rng, left = directive(text="Hm.</think>Let me see." + CALL, batch=2, interval_ms=3), random.Random(8), []
    tool = {"name": "get_weather", "parameters": {"type": "object"}}
    messages = [{"role": "user", "content": said}]
    bodies = [
        ("/v1/messages", {"model": "m", "max_tokens": 500, "thinking": {"type": "adaptive"}, "messages": messages,
                          "tools": [{"name": "get_weather", "input_schema": {"type": "object"}}]}),
        ("/v1/responses", {"model": "m", "input": said, "tools": [{"type": "function", **tool}],
                           "include": ["message.output_text.logprobs"]}),
        ("/v1/chat/completions", {"messages": messages, "tools": [{"type": "function", "function": tool}],
                                  "stream_reasoning": False, "logprobs": True}),
        ("/generate", {"text": said, "return_logprob": True, "logprob_start_len": 0, "rid": "mine"}),
    ]

    def client(i):
        path, body = bodies[i % len(bodies)]
        data = json.dumps({**body, "stream": i % 5 != 0}).encode()
        with threads.connect() as s:
            s.sendall(b"POST %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % (path.encode(), len(data)) + data)
            want = stop_at[i]
            while want > 0 and (got := s.recv(want)):
                want -= len(got)
        left.append(i)

    stop_at = [rng.choice([0, 1, rng.randrange(20000)]) for _ in range(200)]
    for at in range(0, 200, 20):
        running = [threading.Thread(target=client, args=(i,)) for i in range(at, at + 20)]
        for t in running:
            t.start()
        assert post(threads, "/abort_request", {"rid": "mine"})[0] == 200
        assert http_get(threads.url + "/flush_cache")[0] == 200
        for t in running:
            t.join(1 * SLOW)
        assert post(threads, "/abort_request", {"abort_all": True})[0] == 200
        for t in running:
            t.join(30 * SLOW)
    assert sorted(left) == list(range(200))
    wait_until("nothing runs", lambda: all(w["running"] == 0 for w in threads.workers()))
    assert generate(threads, {"text": "still here"})[1]["text"] == "still here"


def test_what_matched_is_told_as_sglang_tells_it(router):
    chat = {"messages": [{"role": "user", "content": directive(text="one two three")}],
            "chat_template_kwargs": {"thinking": False}}
    for path, body in ("/v1/chat/completions", chat), ("/v1/completions", {"prompt": directive(text="one two three")}):
        for extra, want in ({}, EOS), ({"stop": "two"}, "two"), ({"max_tokens": 2}, None):
            status, r = post(router, path, {**body, **extra})
            assert status == 200 and r["choices"][0]["matched_stop"] == want
            last = [json.loads(e)["choices"][0] for e in events(router, path, {**body, **extra, "stream": True})[:-1]]
            assert last[-1]["matched_stop"] == want and not any("matched_stop" in c for c in last[:-1])
