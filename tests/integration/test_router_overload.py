"""A full cluster: who waits, who is refused, who goes first; keys and their limits."""
import concurrent.futures
import contextlib
import hashlib
import http.client
import json
import os
import threading
import time

import pytest

from conftest import SLOW, http_get as get, wait_until
from mock_cluster import MockCluster, directive

OFF = {"chat_template_kwargs": {"thinking": False}}


@pytest.fixture
def cluster(tmp_path, tokenizer_json):
    made = []

    def make(**kw):
        made.append(MockCluster(tmp_path, tokenizer_json, **kw))
        return made[-1]
    yield make
    for c in made:
        c.stop()


def call(c, method, path, body=None, headers=None):
    """-> (status, headers, object)"""
    h = http.client.HTTPConnection("127.0.0.1", c.port, timeout=60 * SLOW)
    h.request(method, path, None if body is None else json.dumps(body), headers or {})
    r = h.getresponse()
    data = r.read()
    h.close()
    return r.status, {k.lower(): v for k, v in r.getheaders()}, json.loads(data) if data.startswith(b"{") else data


def ask(c, do, headers=None, **kw):
    return call(c, "POST", "/v1/chat/completions", {
        "model": "m", "messages": [{"role": "user", "content": directive(**do)}], **OFF, **kw}, headers)


def full(c):
    """The router knows what the workers take at once."""
    wait_until("told", lambda: c.worker("decode", 0).get("reported", {}).get("max_running"))
    time.sleep(0.2)  # two of the router's ticks


@contextlib.contextmanager
def held(c, n):
    """n requests run until the block ends, however slow the machine is."""
    with concurrent.futures.ThreadPoolExecutor(n) as pool:
        before = c.decodes[0].text().count("submit ")
        fs = [pool.submit(ask, c, {"text": "a b", "hang_after": 1}, rid=f"held{i}") for i in range(n)]
        wait_until("running", lambda: c.decodes[0].text().count("submit ") == before + n)
        yield
        for i in range(n):
            call(c, "POST", "/abort_request", {"rid": f"held{i}"})
        concurrent.futures.wait(fs)


# ---- overload ----------------------------------------------------------------------------------------


def test_what_does_not_fit_waits_and_what_cannot_wait_is_refused_at_once(cluster):
    c = cluster(mock_args=["--max-running", 3], router_args=["--max-queued-requests", 5])
    full(c)
    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        running = [pool.submit(ask, c, {"text": "a b c d", "interval_ms": 400}) for _ in range(9)]
        wait_until("full", lambda: c.metric("baton_router_queued_requests") == 5)
        assert c.decodes[0].text().count("submit ") == 4  # 3, and one that is ready to follow
        for _ in range(5):
            status, headers, body = ask(c, {"text": "x"})
            assert status == 429 and int(headers["retry-after"]) >= 1
            assert "5 requests wait" in body["error"]["message"]
        assert [f.result()[0] for f in running] == [200] * 9
    assert c.metric("baton_router_queued_requests") == 0
    assert c.metric("baton_router_refused_total") == 5
    assert ask(c, {"text": "x"})[0] == 200


def test_waiting_is_bounded_by_tokens_too(cluster):
    c = cluster(mock_args=["--max-running", 1], router_args=["--max-queued-tokens", 200])
    full(c)
    with held(c, 2), concurrent.futures.ThreadPoolExecutor(1) as pool:
        waits = pool.submit(ask, c, {"text": "a"})
        wait_until("full", lambda: c.metric("baton_router_queued_requests") == 1)
        h = call(c, "POST", "/v1/completions", {"model": "m", "prompt": "word " * 300, "max_tokens": 1})
        assert h[0] == 429 and "tokens wait" in h[2]["error"]["message"]
        for i in range(2):
            call(c, "POST", "/abort_request", {"rid": f"held{i}"})
        assert waits.result()[0] == 200


def test_who_leaves_while_waiting_is_forgotten(cluster):
    c = cluster(mock_args=["--max-running", 1])
    full(c)
    with held(c, 2):
        body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "x"}]}).encode()
        for _ in range(3):
            s = c.connect()
            s.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%s" % (
                len(body), body))
            wait_until("waits", lambda: c.metric("baton_router_queued_requests") >= 1)
            s.close()
            wait_until("forgotten", lambda: c.metric("baton_router_running_requests") == 2)
    wait_until("nothing", lambda: c.metric("baton_router_running_requests") == 0)
    assert c.decodes[0].text().count("submit ") == 2


def test_priority_goes_first(cluster):
    c = cluster(mock_args=["--max-running", 1])
    full(c)
    with held(c, 2), concurrent.futures.ThreadPoolExecutor(4) as pool:
        fs = []
        for k, (name, p) in enumerate([("low", -3), ("mid", 0), ("high", 5), ("top", 1000)]):
            fs.append(pool.submit(ask, c, {"text": "a b"}, rid=name, priority=p))
            wait_until("waits", lambda: c.metric("baton_router_queued_requests") == k + 1)
        for i in range(2):
            call(c, "POST", "/abort_request", {"rid": f"held{i}"})
        assert [f.result()[0] for f in fs] == [200] * 4
    order = [line.split()[1] for line in c.decodes[0].text().split("\n") if line.startswith("submit ")]
    assert order[2:] == ["top", "high", "mid", "low"]


def test_who_would_wait_too_long_against_the_time_to_first_token_is_refused(cluster):
    c = cluster(mock_args=["--max-running", 2, "--queue"], router_args=["--max-queue-ttft-percent", 50])
    full(c)
    do = {"text": "a b c d", "delay_ms": 300, "interval_ms": 300}
    assert ask(c, do)[0] == 200  # how long one takes is known now
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        running = [pool.submit(ask, c, do) for _ in range(2)]
        wait_until("running", lambda: c.metric("baton_router_running_requests") == 2)
        status, headers, body = ask(c, {"text": "x"})
        assert status == 429 and int(headers["retry-after"]) >= 1
        assert "--max-queue-ttft-percent" in body["error"]["message"]
        assert [f.result()[0] for f in running] == [200] * 2
    assert ask(c, {"text": "x"})[0] == 200


# ---- keys --------------------------------------------------------------------------------------------


def bearer(key):
    return {"Authorization": f"Bearer {key}"}


def test_keys_are_needed_where_there_are_some(cluster):
    c = cluster(router_args=["--api-key", "user-secret", "--admin-api-key", "admin-secret"], start=False)
    wait_until("ready", lambda: get(c.url + "/ready")[0] == 200)
    for path in ("/health", "/ready", "/metrics"):
        assert call(c, "GET", path)[0] == 200
    for headers in ({}, bearer("wrong-secret"), bearer("user-secre"), bearer(""), {"Authorization": "user-secret"}):
        status, h, body = ask(c, {"text": "x"}, headers)
        assert status == 401 and body["error"]["code"] == "invalid_api_key" and h["www-authenticate"] == "Bearer"
        assert call(c, "GET", "/v1/models", headers=headers)[0] == 401
    for headers in (bearer("user-secret"), {"x-api-key": "user-secret"}, bearer("admin-secret"),
                    {"authorization": "bearer user-secret"}):
        assert ask(c, {"text": "x"}, headers)[0] == 200
    new = {"url": "127.0.0.1:9", "worker_type": "prefill"}
    assert call(c, "GET", "/workers", headers=bearer("user-secret"))[0] == 200
    assert call(c, "POST", "/workers", new)[0] == 401
    assert call(c, "POST", "/workers", new, bearer("user-secret"))[0] == 403
    assert call(c, "POST", "/workers", new, bearer("admin-secret"))[0] == 202
    assert call(c, "DELETE", "/workers/127.0.0.1:9", headers=bearer("user-secret"))[0] == 403
    assert call(c, "DELETE", "/workers/127.0.0.1:9", headers=bearer("admin-secret"))[0] == 202
    assert "secret" not in c.router.text()


def test_a_key_file_is_read_again_when_it_changes(cluster, tmp_path):
    keys = tmp_path / "keys"
    hashed = hashlib.sha256(b"hashed-secret").hexdigest()
    keys.write_text(f"# comment\nfirst-secret name=alice\nsha256:{hashed} name=bob admin\n\n")
    c = cluster(router_args=["--api-key-file", keys], start=False)
    wait_until("ready", lambda: get(c.url + "/ready")[0] == 200)
    assert ask(c, {"text": "x"}, bearer("first-secret"))[0] == 200
    assert ask(c, {"text": "x"}, bearer("hashed-secret"))[0] == 200
    tmp = tmp_path / "new"
    tmp.write_text("second-secret\n")
    os.rename(tmp, keys)
    wait_until("read", lambda: ask(c, {"text": "x"}, bearer("second-secret"))[0] == 200)
    assert ask(c, {"text": "x"}, bearer("first-secret"))[0] == 401
    keys.write_text("second-secret nonsense=1\n")
    wait_until("complained", lambda: "keys stay as they are" in c.router.text())
    assert "line 1" in c.router.text() and "nonsense" in c.router.text()
    assert ask(c, {"text": "x"}, bearer("second-secret"))[0] == 200


@pytest.mark.parametrize("line,word", [
    ("short", "characters"), ("sha256:12 name=a", "64"), ("long-enough rps=x", "rps"),
    ("long-enough rps=-1", "bounds"), ("long-enough name=a,b", "name"), ("long-enough what", "what"),
    ("long-enough\nlong-enough", "twice"), ("x" * 2000, "too long"),
])
def test_a_wrong_key_file_ends_the_start(cluster, tmp_path, line, word):
    keys = tmp_path / "keys"
    keys.write_text(line + "\n")
    c = cluster(router_args=["--api-key-file", keys], start=False)
    try:
        assert c.router.p.wait(20 * SLOW) == 1
        assert word in c.router.text() and str(keys) in c.router.text()
    finally:
        c.stop = lambda: [p.kill() or p.file.close() for p in [*c.decodes, *c.prefills]]


def test_keys_have_limits_of_their_own(cluster, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("limited-secret rps=0.5 burst=3\nfree-secret\ntokens-secret tpm=60\n")
    c = cluster(router_args=["--api-key-file", keys], start=False)
    wait_until("ready", lambda: get(c.url + "/ready")[0] == 200)
    got = [ask(c, {"text": "x"}, bearer("limited-secret")) for _ in range(5)]
    statuses = [g[0] for g in got]
    assert statuses[:3] == [200] * 3 and 429 in statuses[3:]
    refused = next(g for g in got if g[0] == 429)
    assert 1 <= int(refused[1]["retry-after"]) <= 3 and "0.5 requests a second" in refused[2]["error"]["message"]
    assert all(ask(c, {"text": "x"}, bearer("free-secret"))[0] == 200 for _ in range(5))
    statuses = [ask(c, {"text": "word " * 30}, bearer("tokens-secret"))[0] for _ in range(4)]
    assert statuses[0] == 200 and statuses[-1] == 429


def test_keys_share_a_full_cluster(cluster, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("greedy-secret name=greedy\nmodest-secret name=modest\n")
    c = cluster(mock_args=["--max-running", 1], router_args=["--api-key-file", keys], start=False)
    wait_until("ready", lambda: get(c.url + "/ready")[0] == 200)

    def told():
        w = call(c, "GET", "/workers", headers=bearer("greedy-secret"))[2]["workers"]
        return all(x.get("reported", {}).get("max_running") for x in w if x["role"] == "decode")
    wait_until("told", told)
    time.sleep(0.2)

    def one(key, rid):
        assert ask(c, {"text": "a b", "interval_ms": 60}, bearer(key), rid=rid)[0] == 200
    with concurrent.futures.ThreadPoolExecutor(20) as pool:
        fs = [pool.submit(one, "greedy-secret", f"g{i}") for i in range(12)]
        wait_until("waits", lambda: c.metric("baton_router_queued_requests") >= 9)
        fs += [pool.submit(one, "modest-secret", f"m{i}") for i in range(3)]
        for f in fs:
            f.result()
    order = [line.split()[1][0] for line in c.decodes[0].text().split("\n") if line.startswith("submit ")]
    last = max(i for i, who in enumerate(order) if who == "m")
    assert last <= 11, order  # the greedy one's 12 are not all served first


# ---- access log --------------------------------------------------------------------------------------


def test_the_access_log_tells_who_and_how_much_but_no_text(cluster, tmp_path):
    keys, log = tmp_path / "keys", tmp_path / "access.jsonl"
    keys.write_text("alice-secret name=alice\n")
    c = cluster(router_args=["--api-key-file", keys, "--access-log", log], start=False)
    wait_until("ready", lambda: get(c.url + "/ready")[0] == 200)
    assert ask(c, {"text": "verysecretanswer"}, {**bearer("alice-secret"), "x-request-id": "req-77"})[0] == 200
    assert ask(c, {"text": "verysecretanswer"}, bearer("nobody-secret"))[0] == 401
    assert call(c, "GET", "/nowhere/%22quoted%22")[0] == 404

    def lines():
        return [json.loads(x) for x in log.read_text().splitlines()] if log.exists() else []
    wait_until("written", lambda: len([x for x in lines() if x["path"] != "/ready"]) >= 3)
    first = next(x for x in lines() if x.get("request_id") == "req-77")
    assert first["status"] == 200 and first["key"] == "alice" and first["method"] == "POST"
    assert first["path"] == "/v1/chat/completions" and first["prompt_tokens"] > 0
    assert first["completion_tokens"] > 0 and first["finish"] == "stop" and first["seconds"] > 0
    assert any(x["status"] == 401 and x["key"] == "-" for x in lines())
    assert any(x["status"] == 404 and '"quoted"' in x["path"] for x in lines())
    assert "verysecret" not in log.read_text() and "-secret" not in log.read_text()
