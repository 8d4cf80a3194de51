"""The APIs before real workers: one prompt gives one text, whatever API it came by; prefixes, salts and flushes."""
import anthropic
import pytest

from conftest import SLOW, http_get
from mock_cluster import post

WORDS = "All work and no play makes a dull day. " * 80  # more than two pages


@pytest.fixture
def workers(cluster):
    return cluster()


def cached(c, salt=None):
    extra = {} if salt is None else {"cache_salt": salt}
    r = c.client().chat.completions.create(model="m", messages=[{"role": "user", "content": WORDS}], max_tokens=2,
                                           temperature=0, extra_body=extra)
    return r.usage.prompt_tokens_details.cached_tokens


def test_one_prompt_gives_one_text_by_every_api(workers):
    n, text = 24, "Say something."
    messages = [{"role": "user", "content": text}]
    chat = workers.client().chat.completions.create(model="m", messages=messages, max_tokens=n, temperature=0,
                                                    extra_body={"chat_template_kwargs": {"thinking": False}})
    want = chat.choices[0].message.content
    assert want
    r = workers.client().responses.create(model="m", input=text, max_output_tokens=n, temperature=0,
                                          reasoning={"effort": "none"})
    assert r.output_text == want and r.usage.output_tokens == chat.usage.completion_tokens
    claude = anthropic.Anthropic(base_url=workers.url, api_key="none", max_retries=0, timeout=120 * SLOW)
    with claude.messages.stream(model="m", messages=messages, max_tokens=n, extra_body={"temperature": 0}) as s:
        m = s.get_final_message()
    assert "".join(b.text for b in m.content) == want
    assert m.usage.input_tokens + m.usage.cache_read_input_tokens == chat.usage.prompt_tokens
    assert claude.messages.count_tokens(model="m", messages=messages).input_tokens == chat.usage.prompt_tokens
    ids = post(workers, "/tokenize", {"messages": messages, "chat_template_kwargs": {"thinking": False}})[1]["tokens"]
    status, g = post(workers, "/generate", {
        "input_ids": ids, "return_logprob": True, "logprob_start_len": 0,
        "sampling_params": {"max_new_tokens": n, "temperature": 0}})
    assert status == 200 and g["text"] == want
    told = g["meta_info"]
    assert [x[1] for x in told["input_token_logprobs"]] == ids and told["input_token_logprobs"][0][0] is None
    assert all(x[0] <= 0 for x in told["input_token_logprobs"][1:] + told["output_token_logprobs"])
    assert [x[1] for x in told["output_token_logprobs"]] == g["output_ids"]


def test_prefixes_are_found_again_within_their_salt_until_flushed(workers):
    assert cached(workers) == 0
    again = cached(workers)
    assert again >= 512
    assert cached(workers, "tenant a") == 0 and cached(workers, "tenant b") == 0
    assert cached(workers, "tenant a") == cached(workers, "tenant b") == again
    assert http_get(workers.url + "/flush_cache")[0] == 200
    assert cached(workers) == 0 and cached(workers, "tenant a") == 0
    assert cached(workers) == again
    r = workers.client().responses.create(model="m", input=WORDS, max_output_tokens=2)
    assert r.usage.input_tokens_details.cached_tokens == again
    claude = anthropic.Anthropic(base_url=workers.url, api_key="none", max_retries=0, timeout=120 * SLOW)
    m = claude.messages.create(model="m", max_tokens=2, thinking={"type": "adaptive"},
                               messages=[{"role": "user", "content": WORDS}])
    assert m.usage.cache_read_input_tokens == again
