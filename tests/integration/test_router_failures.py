"""Workers that die and clients that leave, many times over: nobody notices, nothing stays behind.

The normal run takes a small number of each; tests/run --full takes the whole.
"""
import concurrent.futures
import http.client
import json
import os
import random
import threading
import time

import pytest

from conftest import SLOW, http_get, metric, wait_until
from mock_cluster import MockCluster, directive

FULL = bool(os.environ.get("BATON_TEST_FULL"))
OFF = {"chat_template_kwargs": {"thinking": False}}


@pytest.fixture
def mocks(tmp_path, tokenizer_json):
    made = []

    def make(**kw):
        made.append(MockCluster(tmp_path, tokenizer_json, **kw))
        return made[-1]
    yield make
    for c in made:
        c.stop()


def body(do, **kw):
    return json.dumps({"model": "m", "messages": [{"role": "user", "content": directive(**do)}], **OFF, **kw})


def post(h, data):
    """-> (status, text) on a connection that is kept."""
    h.request("POST", "/v1/chat/completions", data)
    r = h.getresponse()
    return r.status, r.read().decode()


def test_one_dead_prefill_worker_of_two_costs_clients_nothing(mocks):
    n, threads = (10000, 8) if FULL else (400, 4)
    c = mocks(n_prefill=2, mock_args=["--check-prefill"])
    data, bad, done = body({"text": "Hello!"}), [], [0]

    def work(share):
        h = http.client.HTTPConnection("127.0.0.1", c.port, timeout=60 * SLOW)
        for _ in range(share):
            got = post(h, data)
            if got[0] != 200 or "Hello!" not in got[1]:
                bad.append(got)
            done[0] += 1
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        fs = [pool.submit(work, n // threads) for _ in range(threads)]
        wait_until("a tenth of them", lambda: done[0] > n // 10)
        c.prefills[0].kill()
        for f in fs:
            f.result()
    assert bad == [] and done[0] == n // threads * threads


def test_client_errors_and_then_worker_failures_are_no_outage(mocks):
    """30 x 400, 12 failures of the worker, then it is well: it serves within two seconds."""
    c = mocks(n_decode=1, mock_args=["--fail-first", 12], router_args=["--retries", 0])
    h = http.client.HTTPConnection("127.0.0.1", c.port, timeout=60 * SLOW)
    for _ in range(30):
        assert post(h, body({"text": "x"}, temperature=-1))[0] == 400
    failures = 0
    last = time.monotonic()
    data = body({"text": "well"})
    end = last + 60 * SLOW
    while time.monotonic() < end:
        status, text = post(h, data)
        if status == 200:
            break
        assert status in (502, 503), text
        failures += 1
        if c.decodes[0].text().count("refuse ") < 12:
            last = time.monotonic()
    assert status == 200 and c.decodes[0].text().count("refuse ") == 12 and failures >= 12
    assert time.monotonic() - last <= 2 * SLOW
    assert all(post(h, data)[0] == 200 for _ in range(20))


def text_of(line):
    if not line.startswith(b"data: {"):
        return ""
    choices = json.loads(line[6:]).get("choices")
    d = choices[0]["delta"] if choices else {}
    return (d.get("reasoning_content") or "") + (d.get("content") or "")


def stream(c, temperature, seed, seen=None, at=None, tokens=60):
    """The text; seen is set after `at` events."""
    h = http.client.HTTPConnection("127.0.0.1", c.port, timeout=120 * SLOW)
    h.request("POST", "/v1/chat/completions", json.dumps({
        "model": "m", "messages": [{"role": "user", "content": f"Tell me story {seed}."}], "max_tokens": tokens,
        "temperature": temperature, "seed": seed, "stream": True, "ignore_eos": True}))
    r = h.getresponse()
    out, n = "", 0
    assert r.status == 200, r.read()
    for line in r:
        assert b'"error"' not in line, line
        out += text_of(line)
        n += line.startswith(b"data: {")
        if seen is not None and n >= at:
            seen.set()
    return out


def running(c, i):
    workers = json.loads(http_get(c.url + "/workers")[1])["workers"]
    return [w for w in workers if w["role"] == "decode"][i]["running"]


def test_a_decode_worker_killed_at_random_points_changes_no_text(cluster):
    """Real workers; greedy and sampled in turn."""
    c = cluster(n_decode=2)
    rng, n = random.Random(5), 50 if FULL else 4
    for k in range(n):
        temperature, at = k % 2, rng.randrange(1, 50)
        undisturbed = stream(c, temperature, k)
        seen = threading.Event()
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            f = pool.submit(stream, c, temperature, k, seen, at)
            assert seen.wait(60 * SLOW)
            busy = [i for i in range(2) if running(c, i) > 0]
            if busy:  # else it ended before
                c.decodes[busy[0]].kill()
            got = f.result()
        assert got == undisturbed, (k, temperature, at)
        if busy:
            c.decodes[busy[0]].stop()
            c.decodes[busy[0]] = c.start_decode(busy[0])
            wait_until("it is back", lambda: http_get(c.url + "/workers")[1].count('"ready"') == 3)
    # A stream that ends before its worker is found and killed proves nothing: most must not.
    resumes = metric(c.url, "baton_router_resumes_total")
    assert resumes >= n // 2, f"{resumes} of {n} streams were interrupted"


def free_pages(url):
    return metric(url, "baton_kv_pages_free")


def test_random_aborts_leave_no_page_behind(cluster):
    """Clients leave in every phase; what is then in use is what was in use before."""
    flags = ["--disable-radix-cache"]
    c = cluster(prefill_args=flags, decode_args=flags)
    urls = [c.prefill_admin(), c.decode_admin()]
    before = [free_pages(u) for u in urls]
    assert all(n > 0 for n in before) and stream(c, 0, 1, tokens=4)
    n, threads = (10000, 8) if FULL else (160, 4)

    def work(k):
        rng = random.Random(k)
        for i in range(n // threads):
            h = http.client.HTTPConnection("127.0.0.1", c.port, timeout=120 * SLOW)
            h.request("POST", "/v1/chat/completions", json.dumps({
                "model": "m", "messages": [{"role": "user", "content": "word " * rng.randrange(1, 600)}],
                "max_tokens": rng.randrange(1, 40), "seed": i, "stream": True}))
            time.sleep(rng.choice([0, 0.001, 0.003, 0.01, 0.03]))
            if rng.random() < 0.5:
                r = h.getresponse()
                assert r.status in (200, 429, 503)
                r.read1(rng.randrange(1, 2000))
                r.close()
            h.close()
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, range(threads)))
    wait_until("the router is idle", lambda: metric(c.url, "baton_router_running_requests") == 0)
    try:
        wait_until("all pages are back", lambda: [free_pages(u) for u in urls] == before, 20)
    except AssertionError:
        pytest.fail(f"free pages of the prefill and the decode worker: {before} before, "
                    f"{[free_pages(u) for u in urls]} after")
    assert stream(c, 0, 1, tokens=4)
