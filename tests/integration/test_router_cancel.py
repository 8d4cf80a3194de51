"""A request that is not wanted any more, in each phase it can be in: whoever works on it is told, nobody else gets it.

    phase     where the request is                                event      what ends it
    waits     in the router, for room                             leaves     the client closes its connection
    backoff   in the router: its only decode worker has died      aborted    /abort_request
    prefill   with a decode worker, before the first token        deadline   --request-timeout-secs
    decode    with a decode worker, between two tokens
    resumed   with the second decode worker, after the first died
"""
import json
import time

import pytest

from conftest import SLOW, wait_until
from mock_cluster import MockCluster, directive

WHERE = {"waits": {}, "backoff": {"die_after": 1}, "prefill": {"delay_ms": 3600000}, "decode": {"hang_after": 2},
         "resumed": {"die_after": 2, "hang_after": 3}}


@pytest.fixture
def cluster(tmp_path, tokenizer_json):
    made = []

    def make(**kw):
        made.append(MockCluster(tmp_path, tokenizer_json, **kw))
        return made[-1]
    yield make
    for c in made:
        c.stop()


def send(c, path, body):
    s = c.connect()
    data = json.dumps(body).encode()
    s.sendall(b"POST %s HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s" % (
        path.encode(), len(data), data))
    return s


def ask(c, rid, stream, **do):
    return send(c, "/v1/chat/completions", {
        "model": "m", "rid": rid, "stream": stream, "chat_template_kwargs": {"thinking": False},
        "messages": [{"role": "user", "content": directive(text="one two three four", **do)}]})


def count(c, what):
    return sum(d.text().count(what + "\n") + d.text().count(what + " ") for d in c.decodes)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("phase,event", [
    (phase, event) for phase in WHERE for event in ("leaves", "aborted", "deadline")
    if (phase, event) != ("waits", "deadline")])  # those that it waits for reach theirs first
def test_it_ends_everywhere(cluster, tmp_path, phase, event, stream):
    timeout_s = 4 * SLOW if event == "deadline" else 0
    c = cluster(n_decode=2 if phase == "resumed" else 1, mock_args=["--max-running", 1] if phase == "waits" else [],
                router_args=["--worker-wait-ms", 60000, "--request-timeout-secs", timeout_s])
    held = []
    if phase == "waits":
        wait_until("told", lambda: c.worker("decode", 0).get("reported", {}).get("max_running"))
        time.sleep(0.2)  # two of the router's ticks
        held = [ask(c, f"held{i}", True, hang_after=1) for i in range(2)]
        wait_until("held", lambda: count(c, "submit held0") + count(c, "submit held1") == 2)
    # Only the first worker dies, also where its tokens were lost with it and the second begins at the first token.
    once = {"die_flag": str(tmp_path / "died")} if phase == "resumed" else {}
    s = ask(c, "it", stream, **WHERE[phase], **once)
    if phase == "waits":
        wait_until("waits", lambda: c.metric("baton_router_queued_requests") == 1)
    elif phase == "backoff":
        wait_until("died", lambda: not c.decodes[0].alive())
        wait_until("noticed", lambda: c.worker("decode", 0)["state"] != "ready")
    else:
        wait_until("runs", lambda: count(c, "submit it") == (2 if phase == "resumed" else 1))
    submits = count(c, "submit it")

    if event == "leaves":
        s.close()
    elif event == "aborted":
        assert send(c, "/abort_request", {"rid": "it"}).makefile("rb").readline().split()[1] == b"200"
    if event != "leaves":
        got = s.makefile("rb").read()  # to its end: nobody is left hanging
        assert got.startswith(b"HTTP/1.1 504") or b"took longer than" in got or event == "aborted"
    wait_until("over", lambda: c.metric("baton_router_running_requests") == len(held) or event == "deadline")
    if phase in ("prefill", "decode", "resumed"):
        wait_until("told", lambda: count(c, "cancel it") == 1)
    for h in held:
        h.close()
    wait_until("all over", lambda: c.metric("baton_router_running_requests") == 0)
    # Nobody gets it afterwards, not even a worker that it waited for.
    if phase == "backoff":
        c.start_decode(0)
        wait_until("back", c.ready)
        submits = 0 if count(c, "submit it") == 0 else submits  # a new process begins a new log
    answer = ask(c, "after", False).makefile("rb").read()
    assert answer.startswith(b"HTTP/1.1 200")
    assert count(c, "submit it") == submits and c.metric("baton_router_queued_requests") == 0
