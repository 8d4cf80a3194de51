"""A decode worker dies in the middle of a stream: with another one, the client sees the same text."""
import json

import pytest

from conftest import http_get, metric, wait_until


def text(chunk):
    if not chunk.choices:
        return ""
    d = chunk.choices[0].delta
    return (getattr(d, "reasoning_content", None) or "") + (d.content or "")


def running(c, i):
    """Requests that the router has on decode worker i."""
    workers = json.loads(http_get(c.url + "/workers")[1])["workers"]
    return [w for w in workers if w["role"] == "decode"][i]["running"]


def ask(c, temperature):
    return c.client().chat.completions.create(
        model="m", messages=[{"role": "user", "content": "Tell me a long story."}], max_tokens=150,
        temperature=temperature, seed=7, stream=True, presence_penalty=temperature, frequency_penalty=temperature)


@pytest.mark.parametrize("temperature", [0, 1])
def test_a_stream_goes_on_elsewhere_with_the_same_text(cluster, temperature):
    c = cluster(n_decode=2)
    undisturbed = "".join(map(text, ask(c, temperature)))
    stream, got = iter(ask(c, temperature)), ""
    for _ in range(6):
        got += text(next(stream))
    (busy,) = [i for i in range(2) if running(c, i) > 0]
    c.decodes[busy].kill()
    got += "".join(map(text, stream))
    assert got == undisturbed
    assert metric(c.url, "baton_router_resumes_total") == 1
    c.decodes[busy] = c.start_decode(busy)
    wait_until("the worker is back", lambda: http_get(c.url + "/workers")[1].count('"ready"') == 3)
