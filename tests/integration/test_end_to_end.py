"""The way of one request through router, decode and prefill, with the openai client."""
import json
import random
import socket
import threading
import urllib.request

import pytest

from conftest import SLOW, http_get, metric, run_baton, wait_until


def greedy(cluster, content, n, **kw):
    return cluster.client().chat.completions.create(
        model="m", messages=[{"role": "user", "content": content}], max_tokens=n, temperature=0, **kw)


def text_of(choice):
    return (getattr(choice.message, "reasoning_content", None) or "") + (choice.message.content or "")


def test_a_chat_request_is_answered_streaming_and_not(cluster):
    c = cluster()
    whole = greedy(c, "What is 15% of 240?", 24)
    assert whole.choices[0].finish_reason in ("stop", "length")
    assert whole.usage.completion_tokens <= 24 and whole.usage.prompt_tokens > 10
    stream = greedy(c, "What is 15% of 240?", 24, stream=True, stream_options={"include_usage": True})
    text, usage, finish = "", None, None
    for chunk in stream:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            text += (getattr(choice.delta, "reasoning_content", None) or "") + (choice.delta.content or "")
            finish = choice.finish_reason or finish
    assert text == text_of(whole.choices[0])
    assert finish == whole.choices[0].finish_reason
    assert usage.completion_tokens == whole.usage.completion_tokens


def test_models_and_health_answer(cluster):
    c = cluster()
    assert [m.id for m in c.client().models.list()]
    for path in ("/health", "/ready", "/metrics"):
        assert http_get(c.url + path)[0] == 200
        assert http_get(c.decode_admin() + path)[0] == 200
        assert http_get(c.prefill_admin() + path)[0] == 200


def test_the_same_seed_gives_the_same_text(cluster):
    c = cluster()

    def ask(seed):
        r = c.client().chat.completions.create(model="m", messages=[{"role": "user", "content": "Sing."}],
                                               max_tokens=32, temperature=1, seed=seed)
        return text_of(r.choices[0])

    first = ask(1)
    assert first == ask(1)
    assert first != ask(2)


def test_bad_requests_are_refused_with_the_reason(cluster):
    import openai
    c = cluster()
    with pytest.raises(openai.BadRequestError) as e:
        c.client().chat.completions.create(model="m", messages=[])
    assert e.value.body["type"] == "invalid_request_error"
    with pytest.raises(openai.BadRequestError):
        greedy(c, "x", 8, top_p=7)
    r = urllib.request.Request(c.url + "/v1/chat/completions", data=b"{nonsense", method="POST")
    with pytest.raises(urllib.error.HTTPError) as e:
        urllib.request.urlopen(r)
    assert e.value.code == 400 and json.loads(e.value.read())["error"]["message"]


def pages(url):
    pages = metric(url, "baton_kv_pages_free") + metric(url, "baton_kv_pages_cached")
    return pages, metric(url, "baton_kv_slots_free")


def test_aborts_leave_no_page_behind(cluster):
    """200 requests, 50 of them cut by the client at random points; then all pages are free again."""
    c = cluster()
    before = pages(c.decode_admin()), pages(c.prefill_admin())
    rng = random.Random(5)
    errors = []

    def cut_one(seed):
        rng = random.Random(seed)
        body = json.dumps({"model": "m", "stream": True, "max_tokens": 200, "messages": [
            {"role": "user", "content": "word " * rng.randrange(1, 800)}]})
        with socket.create_connection(("127.0.0.1", c.port)) as s:
            s.sendall((f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
                       f"Content-Type: application/json\r\n\r\n{body}").encode())
            for _ in range(rng.randrange(0, 6)):
                s.recv(4096)

    def ask_one(seed):
        try:
            greedy(c, "question " * (seed % 40), 4)
        except Exception as e:  # any refusal counts
            errors.append(repr(e))

    jobs = [(cut_one if i % 4 == 0 else ask_one, i) for i in range(200)]
    rng.shuffle(jobs)
    for start in range(0, len(jobs), 8):
        threads = [threading.Thread(target=f, args=(i,)) for f, i in jobs[start:start + 8]]
        for t in threads:
            t.start()
        for t in threads:
            t.join(120 * SLOW)
            assert not t.is_alive()
    assert not errors, errors[:3]
    wait_until("all pages free again",
               lambda: (pages(c.decode_admin()), pages(c.prefill_admin())) == before, 30)


def test_flipped_bytes_are_found_and_sent_again(cluster):
    good = text_of(greedy(cluster(), "Tell me of checksums.", 16).choices[0])
    c = cluster(prefill_args=["--inject-kv-flips", "1"])
    assert text_of(greedy(c, "Tell me of checksums.", 16).choices[0]) == good
    assert metric(c.decode_admin(), "baton_kv_checksum_mismatches_total") == 1
    assert "checksum" in c.decodes[0].text()


def test_pages_that_never_match_fail_the_request(cluster):
    import openai
    c = cluster(prefill_args=["--inject-kv-flips", "1000"])
    with pytest.raises(openai.InternalServerError) as e:
        greedy(c, "Tell me of checksums.", 16)
    assert "checksum" in str(e.value).lower()
    assert metric(c.decode_admin(), "baton_kv_checksum_mismatches_total") >= 2


def test_workers_with_different_checkpoints_refuse_each_other(cluster, tmp_path, tokenizer_json):
    import openai
    other = tmp_path / "other"
    run_baton("demo-checkpoint", other, "--tokenizer", tokenizer_json, "--seed", "99")
    c = cluster(model_of={"prefill": other})
    with pytest.raises(openai.APIStatusError) as e:
        greedy(c, "hello", 4)
    log = c.decodes[0].text() + c.prefills[0].text()
    assert "fingerprint" in str(e.value)
    assert log.count("checkpoints differ") >= 1


@pytest.mark.parametrize("victim", ["prefill", "decode"])
def test_a_killed_worker_gives_an_error_and_comes_back(cluster, victim):
    import time
    import openai
    c = cluster()
    result = {}

    def ask():
        start = None
        try:
            # A long prompt, so that the kill falls into prefill; for decode, many tokens.
            stream = greedy(c, "word " * (6000 if victim == "prefill" else 10), 4000, stream=True)
            for _ in stream:
                result["tokens"] = result.get("tokens", 0) + 1
            result["end"] = "finished"
        except (openai.APIError, openai.APIConnectionError) as e:
            result["end"] = e
        result["at"] = time.monotonic()

    t = threading.Thread(target=ask)
    t.start()
    if victim == "decode":
        wait_until("first tokens", lambda: result.get("tokens", 0) > 3)
    else:
        wait_until("the prompt is being computed",
                   lambda: metric(c.prefill_admin(), "baton_prefill_requests_total") > 0)
    killed = time.monotonic()
    (c.prefills if victim == "prefill" else c.decodes)[0].kill()
    t.join(60 * SLOW)
    assert not t.is_alive()
    assert isinstance(result["end"], openai.APIError), result
    assert result["at"] - killed < 5 * SLOW
    assert c.router.alive()
    if victim == "prefill":
        c.prefills[0] = c.start_prefill(0)
    else:
        c.decodes[0] = c.start_decode(0)

    def works():
        try:
            return greedy(c, "again", 4).choices
        except openai.APIError:
            return None

    wait_until("serving again without a restart of the others", works, 60)
