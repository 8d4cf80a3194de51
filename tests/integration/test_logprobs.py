"""Log probabilities and sampling fields through the router, before mock workers whose numbers are known."""
import json
import re

import openai
import pytest

from conftest import wait_until
from mock_cluster import MockCluster, directive
from test_router_mock import OFF, ask, post, report

TEXT = "one two three 世界 😀 four"


@pytest.fixture(scope="module")
def router(tmp_path_factory, tokenizer_json):
    c = MockCluster(tmp_path_factory.mktemp("router"), tokenizer_json)
    yield c
    c.stop()


# ---- fields ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("field,value,key,expect", [
    ("presence_penalty", -1.5, "presence_penalty", -1.5), ("presence_penalty", 2, "presence_penalty", 2),
    ("frequency_penalty", 0.25, "frequency_penalty", 0.25), ("repetition_penalty", 1.25, "repetition_penalty", 1.25),
    ("logit_bias", {"5": 1, "129279": -100, "0": 2.5}, "logit_bias", [[5, 1], [129279, -100], [0, 2.5]]),
    ("logit_bias", {}, "logit_bias", []), ("min_tokens", 3, "min_new_tokens", 3), ("min_p", 0.5, "min_p", 0.5),
    ("top_k", 7, "top_k", 7), ("top_k", -1, "top_k", 0), ("seed", 42, "seed", 42), ("ignore_eos", True, "ignore_eos", 1),
    ("stop_token_ids", [9, 8], "stop", [9, 8]), ("temperature", 0, "temperature", 0), ("top_p", 0.5, "top_p", 0.5),
    ("logprobs", False, "logprobs", 0),
])
def test_each_field_reaches_the_worker(router, field, value, key, expect):
    assert report(router, {field: value}, max_tokens=1000)[key] == expect
    if field == "logprobs":
        return
    r = router.client().completions.create(model="m", prompt=directive(report=True), max_tokens=1000,
                                           extra_body={field: value})
    assert json.loads(r.choices[0].text)[key] == expect


def test_what_is_off_is_told_as_off(router):
    got = report(router)
    assert (got["presence_penalty"], got["frequency_penalty"], got["repetition_penalty"]) == (0, 0, 1)
    assert (got["logprobs"], got["top_logprobs"], got["prompt_logprobs"], got["logit_bias"]) == (0, 0, 0, [])
    got = report(router, logprobs=True, top_logprobs=20)
    assert (got["logprobs"], got["top_logprobs"], got["prompt_logprobs"]) == (1, 20, 0)


@pytest.mark.parametrize("field,value", [
    ("presence_penalty", 2.1), ("presence_penalty", "1"), ("frequency_penalty", -2.1), ("repetition_penalty", 0),
    ("repetition_penalty", 2.1), ("logit_bias", []), ("logit_bias", {"5": "x"}), ("logit_bias", {"5": 101}),
    ("logit_bias", {"129280": 1}), ("logit_bias", {"-1": 1}), ("logit_bias", {"1.0": 1}), ("logit_bias", {"": 1}),
    ("logit_bias", {"99999999999": 1}), ("logit_bias", {str(i): 1 for i in range(1025)}), ("logprobs", "yes"),
    ("logprobs", 5), ("top_logprobs", 5), ("top_logprobs", -1), ("top_logprobs", 129), ("prompt_logprobs", 1),
])
def test_out_of_bounds_is_refused_by_name(router, field, value):
    status, body = post(router, {"model": "m", "messages": [{"role": "user", "content": "x"}], field: value})
    assert status == 400 and field in body["error"]["param"] and body["error"]["message"], body


# ---- chat --------------------------------------------------------------------------------------------


def check_chat_entries(entries, text, n_top):
    eos = entries[-1]
    assert eos.token == "<｜end▁of▁sentence｜>" and bytes(eos.bytes).decode() == eos.token
    assert b"".join(bytes(e.bytes) for e in entries[:-1]).decode() == text
    for k, e in enumerate(entries):
        assert e.logprob == -k / 8 and len(e.top_logprobs) == n_top
        assert [t.logprob for t in e.top_logprobs] == [-k / 8 - j for j in range(n_top)]
        if n_top:
            assert (e.top_logprobs[0].token, e.top_logprobs[0].bytes) == (e.token, e.bytes)
        try:
            assert bytes(e.bytes).decode() == e.token
        except UnicodeDecodeError:
            assert "\\x" in e.token


@pytest.mark.parametrize("batch", [1, 4, 100])
@pytest.mark.parametrize("n_top", [0, 3])
def test_chat_logprobs_whole_and_streamed(router, batch, n_top):
    do = {"text": TEXT, "batch": batch}
    r = ask(router, do, extra=OFF, logprobs=True, top_logprobs=n_top)
    (c,) = r.choices
    assert c.message.content == TEXT and len(c.logprobs.content) == r.usage.completion_tokens
    check_chat_entries(c.logprobs.content, TEXT, n_top)
    entries, content = [], ""
    for chunk in ask(router, do, extra=OFF, logprobs=True, top_logprobs=n_top, stream=True):
        (c,) = chunk.choices
        content += c.delta.content or ""
        if c.logprobs is not None:
            entries += c.logprobs.content
    assert content == TEXT
    check_chat_entries(entries, TEXT, n_top)


def test_a_streamed_chunk_has_the_logprobs_of_its_text(router):
    chunks = [c.choices[0] for c in ask(router, {"text": "a b c d", "batch": 3}, extra=OFF, logprobs=True, stream=True)]
    for c in chunks[1:-1]:
        assert b"".join(bytes(e.bytes) for e in c.logprobs.content).decode() == c.delta.content
    assert chunks[0].logprobs is None


def test_reasoning_and_calls_have_logprobs_too(router):
    text = "Let me think.</think>It is 36."
    r = ask(router, {"text": text}, logprobs=True)
    assert len(r.choices[0].logprobs.content) == r.usage.completion_tokens
    check_chat_entries(r.choices[0].logprobs.content, text, 0)


def test_without_logprobs_there_are_none(router):
    assert ask(router, {"text": "x"}, extra=OFF).choices[0].logprobs is None
    for chunk in ask(router, {"text": "x y"}, extra=OFF, stream=True):
        assert chunk.choices[0].logprobs is None


def test_logprobs_end_at_a_stop_string(router):
    r = ask(router, {"text": "one two three four", "batch": 100}, extra=OFF, logprobs=True, stop="three")
    assert r.choices[0].message.content == "one two "
    entries = r.choices[0].logprobs.content
    assert len(entries) == r.usage.completion_tokens == 3
    assert b"".join(bytes(e.bytes) for e in entries).decode() == "one two three"


def test_choices_keep_their_logprobs_apart(router):
    r = ask(router, {"text": "Hi there 😀"}, extra=OFF, n=3, logprobs=True, top_logprobs=1)
    for c in r.choices:
        check_chat_entries(c.logprobs.content, "Hi there 😀", 1)
    entries = [[], [], []]
    for chunk in ask(router, {"text": "Hi there 😀"}, extra=OFF, n=3, logprobs=True, top_logprobs=1, stream=True):
        for c in chunk.choices:
            entries[c.index] += c.logprobs.content if c.logprobs else []
    for e in entries:
        check_chat_entries(e, "Hi there 😀", 1)


@pytest.mark.parametrize("bad", [1, 2, 3])
def test_a_worker_whose_logprobs_do_not_fit_fails_the_request(router, bad):
    with pytest.raises(openai.APIStatusError) as e:
        ask(router, {"text": "x", "bad_logprobs": bad}, extra=OFF, logprobs=True, top_logprobs=1)
    assert e.value.status_code >= 500 and "decode worker" in e.value.message


# ---- completions -------------------------------------------------------------------------------------


def bytes_of(token):
    if not token.startswith("bytes:"):
        return token.encode()
    return re.sub(rb"\\x(..)", lambda m: bytes.fromhex(m[1].decode()), token[6:].encode())


def check_completion(lp, text, n_top):
    assert lp.tokens[-1] == "<｜end▁of▁sentence｜>"
    at = 0
    for k, token in enumerate(lp.tokens):
        assert lp.token_logprobs[k] == -k / 8 and lp.text_offset[k] >= at
        at = lp.text_offset[k]
        assert len(lp.top_logprobs[k]) == max(n_top, 1) and lp.top_logprobs[k][token] == -k / 8
        if not token.startswith("bytes:"):
            assert (text + lp.tokens[-1])[at:].startswith(token)
    assert b"".join(map(bytes_of, lp.tokens[:-1])).decode() == text


@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("n_top", [0, 1, 5])
def test_completion_logprobs_whole_and_streamed(router, batch, n_top):
    kw = dict(model="m", prompt=directive(text=TEXT, batch=batch), max_tokens=100, logprobs=n_top)
    r = router.client().completions.create(**kw)
    assert r.choices[0].text == TEXT
    check_completion(r.choices[0].logprobs, TEXT, n_top)
    got = openai.types.completion_choice.Logprobs(tokens=[], token_logprobs=[], top_logprobs=[], text_offset=[])
    for chunk in router.client().completions.create(**kw, stream=True):
        lp = chunk.choices[0].logprobs
        if lp is not None:
            for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
                getattr(got, name).extend(getattr(lp, name))
    check_completion(got, TEXT, n_top)


@pytest.mark.parametrize("value", [-1, 129, "5", 1.5, True])
def test_completion_logprobs_out_of_bounds_are_refused(router, value):
    with pytest.raises(openai.BadRequestError) as e:
        router.client().completions.create(model="m", prompt="x", extra_body={"logprobs": value})
    assert "logprobs" in e.value.message


# ---- the prompt --------------------------------------------------------------------------------------


def complete(router, stream, **kw):
    """-> text, logprobs, finish, usage; of a stream put together"""
    made = router.client().completions.create(model="m", stream=stream, **kw, **(
        {"stream_options": {"include_usage": True}} if stream else {}))
    if not stream:
        (c,) = made.choices
        return c.text, c.logprobs, c.finish_reason, made.usage
    text, finish, usage = "", None, None
    lp = openai.types.completion_choice.Logprobs(tokens=[], token_logprobs=[], top_logprobs=[], text_offset=[])
    for chunk in made:
        usage = chunk.usage or usage
        for c in chunk.choices:
            text, finish = text + c.text, c.finish_reason or finish
            for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset") if c.logprobs else ():
                getattr(lp, name).extend(getattr(c.logprobs, name))
    return text, lp, finish, usage


@pytest.mark.parametrize("stream", [False, True])
def test_echo_shows_the_prompt_and_its_logprobs(router, stream):
    prompt = directive(text=TEXT) + " 😀 世"
    text, lp, finish, usage = complete(router, stream, prompt=prompt, max_tokens=100, echo=True, logprobs=2)
    assert (text, finish) == (prompt + TEXT, "stop")
    n = usage.prompt_tokens
    assert len(lp.tokens) == n + usage.completion_tokens
    assert lp.token_logprobs == [None] + [-i / 16 for i in range(1, n)] + [-k / 8 for k in range(len(lp.tokens) - n)]
    assert lp.top_logprobs[0] is None and all(len(t) == 2 for t in lp.top_logprobs[1:])
    assert b"".join(map(bytes_of, lp.tokens[:-1])).decode() == text
    for at, token in zip(lp.text_offset, lp.tokens):
        assert token.startswith("bytes:") or (text + lp.tokens[-1])[at:].startswith(token)


@pytest.mark.parametrize("stream", [False, True])
def test_echo_alone_scores_the_prompt(router, stream):
    prompt = directive(text="never shown")
    text, lp, finish, usage = complete(router, stream, prompt=prompt, max_tokens=0, echo=True, logprobs=0)
    assert (text, finish, usage.completion_tokens) == (prompt, "length", 0)
    assert len(lp.tokens) == len(lp.token_logprobs) == usage.prompt_tokens
    text, lp, _, _ = complete(router, stream, prompt=prompt, max_tokens=0, echo=True)
    assert text == prompt and (lp is None or lp.tokens == [])


def test_echo_of_several_prompts_and_choices(router):
    a, b = directive(text="first"), directive(text="second")
    r = router.client().completions.create(model="m", prompt=[a, b], n=2, max_tokens=50, echo=True, logprobs=1)
    assert [c.text for c in r.choices] == [a + "first"] * 2 + [b + "second"] * 2
    for c in r.choices:
        assert c.logprobs.token_logprobs[:3] == [None, -1 / 16, -2 / 16]


def test_max_tokens_0_needs_echo(router):
    for extra in ({}, {"echo": False}):
        with pytest.raises(openai.BadRequestError, match="max_tokens"):
            router.client().completions.create(model="m", prompt="x", max_tokens=0, **extra)
    with pytest.raises(openai.BadRequestError, match="min_tokens"):
        router.client().completions.create(model="m", prompt="x", extra_body={"min_tokens": 17})
    status, body = post(router, {"model": "m", "messages": [{"role": "user", "content": "x"}], "echo": True})
    assert status == 400 and "echo" in body["error"]["message"]


def test_logprobs_go_on_after_a_failover(tmp_path, tokenizer_json):
    c = MockCluster(tmp_path, tokenizer_json, n_decode=2)
    try:
        do = {"text": "one two three four five six", "die_after": 3, "die_flag": str(tmp_path / "died")}
        r = ask(c, do, extra=OFF, logprobs=True, top_logprobs=2)
        assert (tmp_path / "died").exists()
        check_chat_entries(r.choices[0].logprobs.content, do["text"], 2)
        do["die_flag"] = str(tmp_path / "died too")
        c.start_decode(0 if not c.decodes[0].alive() else 1)
        wait_until("both are back", c.ready)
        text, lp, _, usage = complete(c, False, prompt=directive(**do), max_tokens=100, echo=True, logprobs=0)
        assert (tmp_path / "died too").exists() and text == directive(**do) + do["text"]
        assert len(lp.tokens) == usage.prompt_tokens + usage.completion_tokens
    finally:
        c.stop()
