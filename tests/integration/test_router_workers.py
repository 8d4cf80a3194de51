"""Which worker gets a request, what the router knows of workers, and what it does when they fail."""
import concurrent.futures
import http.client
import json
import time

import pytest

from conftest import SLOW, Process, free_port, http_get as get, wait_until
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
    """-> (status, object)"""
    h = http.client.HTTPConnection("127.0.0.1", c.port, timeout=30 * SLOW)
    h.request(method, path, None if body is None else json.dumps(body), headers or {})
    r = h.getresponse()
    data = r.read()
    h.close()
    return r.status, json.loads(data) if data else None


def ask(c, do, text="", headers=None, **kw):
    """-> (status, content or error)"""
    status, body = call(c, "POST", "/v1/chat/completions", {
        "model": "m", "messages": [{"role": "user", "content": text + directive(**do)}], **OFF, **kw}, headers)
    return status, body["choices"][0]["message"]["content"] if status == 200 else body["error"]["message"]


def served(c):
    """Requests each decode worker got."""
    return [d.text().count("\nsubmit ") for d in c.decodes]


# ---- policies ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["round_robin", "random", "power_of_two", "least_load", "cache_aware",
                                    "prefix_hash", "consistent", "kv_exact"])
def test_every_policy_serves(cluster, policy):
    c = cluster(n_decode=2, n_prefill=2, router_args=["--policy", policy])
    for i in range(8):
        assert ask(c, {"text": f"n{i}"}) == (200, f"n{i}")
    assert json.loads(get(c.url + "/workers")[1])["policies"]["decode"]["policy"] == policy
    if policy == "round_robin":
        assert served(c) == [4, 4]


def test_prefill_and_decode_have_policies_of_their_own(cluster):
    c = cluster(router_args=["--policy", "random", "--prefill-policy", "cache_aware"])
    p = json.loads(get(c.url + "/workers")[1])["policies"]
    assert p["prefill"]["policy"] == "cache_aware" and p["decode"]["policy"] == "random"


def test_kv_exact_follows_the_pages_that_workers_tell(cluster):
    """Five conversations over two workers: each turn goes where the turns before are."""
    c = cluster(n_decode=2, context=100000)
    homes = {}
    for turn in range(4):
        for conv in range(5):
            before = served(c)
            assert ask(c, {"text": "x"}, text=f"conversation {conv} " * 300 + "more " * 300 * turn)[0] == 200
            home = [b > a for a, b in zip(before, served(c))].index(True)
            assert homes.setdefault(conv, home) == home, (turn, conv)
            wait_until("told", lambda: all(w["reported"]["page_events"] > 0 for w in c.workers()
                                           if w["role"] == "decode" and w["submitted"] > 0))
            # Told pages take over from the router's own guess when they have arrived.
            wait_until("idle", lambda: c.metric("baton_router_running_requests") == 0)
    assert set(homes.values()) == {0, 1}


def test_consistent_follows_the_routing_key(cluster):
    c = cluster(n_decode=3, router_args=["--policy", "consistent"])
    for header in ("x-smg-routing-key", "x-session-id"):
        seen = set()
        for key in range(40):
            before = served(c)
            for _ in range(2):
                assert ask(c, {"text": "x"}, headers={header: f"key-{key}"})[0] == 200
            gained = [b - a for a, b in zip(before, served(c))]
            assert sorted(gained) == [0, 0, 2]
            seen.add(gained.index(2))
        assert len(seen) == 3


def test_load_is_reported_and_shown(cluster):
    c = cluster(mock_args=["--max-running", 7])
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        f = pool.submit(ask, c, {"text": "a b c d", "interval_ms": 300})
        wait_until("running", lambda: c.worker("decode", 0).get("reported", {}).get("running") == 1)
        w = c.worker("decode", 0)
        assert w["running"] == 1 and w["usable"] and w["load_seconds"] > 0
        assert w["reported"]["max_running"] == 7
        assert f.result()[0] == 200
    wait_until("all tell", lambda: len(call(c, "GET", "/v1/loads")[1]["loads"]) == 2)
    loads = call(c, "GET", "/v1/loads")[1]
    assert {x["role"] for x in loads["loads"]} == {"prefill", "decode"} and loads["aggregate"]["workers"] == 2
    text = get(c.url + "/metrics")[1]
    for name in ("ready", "usable", "running_requests", "load_seconds", "free_pages", "breaker_open"):
        assert f'baton_router_worker_{name}{{role="decode"' in text
    for name in ("index_pages", "index_bytes", "index_dropped_total"):
        assert f'baton_router_{name}{{role="prefill"}}' in text


# ---- failures ----------------------------------------------------------------------------------------


def test_one_dead_prefill_worker_of_two_costs_clients_nothing(cluster):
    c = cluster(n_prefill=2, n_decode=2, mock_args=["--check-prefill"])
    n = 10000 if SLOW == 1 else 2000
    done = []

    def work(k):
        h = http.client.HTTPConnection("127.0.0.1", c.port, timeout=60 * SLOW)
        bad = []
        for i in range(n // 8):
            h.request("POST", "/v1/completions", json.dumps({"model": "m", "prompt": "hello", "max_tokens": 2}))
            r = h.getresponse()
            body = r.read()
            if r.status != 200:
                bad.append((r.status, body))
            done.append(i)
            if k == 0 and i == 50:
                c.prefills[0].kill()
        h.close()
        return bad
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        bad = [b for bs in pool.map(work, range(8)) for b in bs]
    assert not bad, bad[:3]
    assert len(done) == n


def test_client_errors_never_open_a_breaker_and_a_healed_worker_serves_within_2_s(cluster):
    """30 x HTTP 400, then 12 failures of the worker's making, then healthy."""
    c = cluster(start=False)
    c.decodes[0].kill()
    c.start_decode(0, ["--fail-first", 12])
    wait_until("ready", c.ready)
    for _ in range(30):
        assert ask(c, {"text": "x"}, temperature=99)[0] == 400
    assert c.worker("decode", 0)["breaker"] == "closed"
    failures = 0
    while True:
        status, _ = ask(c, {"text": "back"})
        if status == 200:
            break
        assert status == 503
        failures += 1
        assert failures <= 12
    # The mock was well from its 13th submit on: how many of them were client errors is the router's to say.
    assert c.decodes[0].text().count("refuse ") == 12
    healed = time.monotonic()
    while ask(c, {"text": "x"})[0] != 200:
        assert time.monotonic() - healed < 2 * SLOW
    wait_until("closed", lambda: c.worker("decode", 0)["breaker"] == "closed")


def test_a_failing_worker_is_left_alone_while_there_is_another(cluster):
    c = cluster(n_decode=2, start=False)
    c.decodes[1].kill()
    c.start_decode(1, ["--fail-first", 1000000])
    wait_until("ready", c.ready)
    for i in range(200):
        assert ask(c, {"text": f"{i}"}) == (200, f"{i}")
    w = c.worker("decode", 1)
    assert w["breaker"] in ("open", "probing") and not (w["breaker"] == "open" and w["usable"])
    assert w["failed"] < 60 and "not well" in w["last_error"]
    assert served(c)[0] == 200


@pytest.mark.parametrize("policy", ["kv_exact", "consistent"])
def test_a_prefill_worker_that_is_blamed_is_avoided_and_no_decode_worker_suffers(cluster, policy):
    c = cluster(n_prefill=2, n_decode=1, router_args=["--policy", policy])
    for i in range(30):
        do = {"text": f"{i}", "fail_prefill": c.prefill_ports[0]}
        assert ask(c, do, headers={"x-session-id": f"{i}"}) == (200, f"{i}")
    bad, good, decode = c.worker("prefill", 0), c.worker("prefill", 1), c.worker("decode", 0)
    assert bad["failed"] >= 5 and "not well" in str(bad["last_error"]) or bad["usable"]
    assert bad["failed"] < 30 and good["failed"] == 0 and decode["failed"] == 0
    assert decode["breaker"] == "closed" and good["breaker"] == "closed"


def test_a_worker_whose_steps_stand_still_counts_as_lost(cluster):
    c = cluster(n_decode=2, router_args=["--stall-secs", 1])
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        f = pool.submit(ask, c, {"text": "one two three", "hang_after": 2})
        wait_until("stalled", lambda: any("no step" in str(w["last_error"]) or w["lost"] > 0 for w in c.workers()),
                   20 * SLOW)
        f.result()  # the other one hangs too: an error in the end, not a hung client


# ---- who there is ------------------------------------------------------------------------------------


def test_workers_are_added_drained_and_removed_while_it_runs(cluster, tokenizer_json, tmp_path):
    c = cluster(router_args=["--router-threads", 2])
    port = free_port()
    new = f"127.0.0.1:{port}"
    mock = Process("mock", ["--tokenizer-path", tokenizer_json, "--port", port], tmp_path / "new.log")
    try:
        assert call(c, "POST", "/workers", {"url": f"grpc://{new}", "worker_type": "decode"})[0] == 202
        status, e = call(c, "POST", "/workers", {"url": new, "worker_type": "decode"})
        assert status == 400 and "known" in e["error"]["message"]
        for body in ({}, {"url": "nonsense", "worker_type": "decode"}, {"url": "h:1", "worker_type": "x"}, []):
            assert call(c, "POST", "/workers", body)[0] == 400
        wait_until("there", lambda: all(call(c, "GET", f"/workers/{new}")[1].get("state") == "ready"
                                        for _ in range(8)))
        old = f"127.0.0.1:{c.decode_ports[0]}"
        assert call(c, "POST", f"/workers/{old}/drain")[0] == 202
        wait_until("draining", lambda: all(call(c, "GET", f"/workers/{old}")[1]["draining"] for _ in range(8)))
        before = c.decodes[0].text().count("submit ")
        for i in range(6):
            assert ask(c, {"text": f"{i}"}) == (200, f"{i}")
        assert c.decodes[0].text().count("submit ") == before
        assert call(c, "POST", f"/workers/{old}/undrain")[0] == 202
        wait_until("back", lambda: not any(call(c, "GET", f"/workers/{old}")[1]["draining"] for _ in range(8)))
        # A removed worker finishes what it runs.
        assert call(c, "POST", f"/workers/{new}/drain")[0] == 202
        wait_until("drained", lambda: all(call(c, "GET", f"/workers/{new}")[1]["draining"] for _ in range(8)))
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            f = pool.submit(ask, c, {"text": "one two three four", "interval_ms": 200})
            wait_until("running", lambda: c.metric("baton_router_running_requests") == 1)
            assert call(c, "DELETE", "/workers/" + old.replace(":", "%3A"))[0] == 202
            assert f.result() == (200, "one two three four")
        wait_until("gone", lambda: "session closed" in c.decodes[0].text())
        assert call(c, "GET", f"/workers/{old}")[0] == 404
        assert call(c, "DELETE", f"/workers/{old}")[0] == 404
        assert call(c, "POST", f"/workers/{new}")[0] == 405
    finally:
        mock.kill()
        mock.file.close()
