"""The router's HTTP front over real sockets: framing, pipelining, limits, deadlines, draining."""
import json
import socket
import threading
import time

import pytest

from conftest import SLOW, Process, http_get as get, wait_until
from mock_cluster import MockCluster

HEALTH = b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n"


@pytest.fixture(scope="module")
def router(tmp_path_factory, tokenizer_json):
    c = MockCluster(tmp_path_factory.mktemp("router"), tokenizer_json,
                    router_args=["--head-timeout-ms", 1000 * SLOW, "--body-timeout-ms", 1000 * SLOW,
                                 "--max-body-bytes", 100000])
    yield c
    c.stop()


class Answers:
    """Reads responses from a raw connection, one after the other."""

    def __init__(self, sock):
        self.f = sock.makefile("rb")

    def next(self, head=False):
        line = self.f.readline()
        if not line:
            return None
        status, headers = int(line.split()[1]), {}
        while (line := self.f.readline()) not in (b"\r\n", b""):
            name, value = line.decode().rstrip("\r\n").split(": ", 1)
            headers[name.lower()] = value
        body = b"" if head else self.f.read(int(headers.get("content-length", 0)))
        return status, headers, body

    def closed(self):
        return self.f.read(1) == b""


def ask(router, raw, n=1):
    with router.connect() as s:
        s.sendall(raw)
        a = Answers(s)
        return [a.next() for _ in range(n)]


def test_requests_follow_each_other_on_one_connection(router):
    with router.connect() as s:
        a = Answers(s)
        for _ in range(3):
            s.sendall(HEALTH)
            assert a.next()[0] == 200


def test_pipelined_requests_are_answered_in_order(router):
    nope = b"GET /nope HTTP/1.1\r\nHost: a\r\n\r\n"
    got = ask(router, (HEALTH + nope) * 20, 40)
    assert [g[0] for g in got] == [200, 404] * 20


def test_a_request_may_come_byte_by_byte(router):
    with router.connect() as s:
        for i in range(len(HEALTH)):
            s.sendall(HEALTH[i:i + 1])
        assert Answers(s).next()[0] == 200


def test_head_answers_without_body(router):
    with router.connect() as s:
        s.sendall(HEALTH.replace(b"GET", b"HEAD") + HEALTH)
        a = Answers(s)
        status, headers, _ = a.next(head=True)
        assert status == 200 and int(headers["content-length"]) > 0
        assert a.next()[2] == b'{"status":"ok"}'


def test_connection_close_and_http_1_0_close(router):
    for raw in (HEALTH.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"), b"GET /health HTTP/1.0\r\n\r\n"):
        with router.connect() as s:
            s.sendall(raw)
            a = Answers(s)
            status, headers, _ = a.next()
            assert status == 200 and headers["connection"] == "close"
            assert a.closed()


def test_a_client_that_stops_sending_still_gets_its_answer(router):
    with router.connect() as s:
        s.sendall(HEALTH)
        s.shutdown(socket.SHUT_WR)
        a = Answers(s)
        assert a.next()[0] == 200 and a.closed()


@pytest.mark.parametrize("raw,status", [
    (b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n{}", 400),
    (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}", 400),
    (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding : chunked\r\n\r\n", 400),
    (b"GET / HTTP/1.1\r\nHost: a\r\nX: b\r\n c\r\n\r\n", 400),
    (b"GET / HTTP/1.1\r\nHost: a\nX: b\r\n\r\n", 400),
    (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"b" * 40000, 431),
    (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100001\r\n\r\n", 413),
    (b"NONSENSE\r\n\r\n", 400),
    (b"GET / HTTP/2.0\r\n\r\n", 505),
])
def test_a_bad_request_is_answered_and_nothing_after_it_is_read(router, raw, status):
    with router.connect() as s:
        s.sendall(raw + HEALTH)
        a = Answers(s)
        got, headers, body = a.next()
        assert got == status and headers["connection"] == "close"
        assert json.loads(body)["error"]["message"]
        assert a.closed()


def test_a_body_that_is_refused_while_it_is_sent_still_gets_its_answer(router):
    """No reset: the client may be in the middle of writing."""
    with router.connect() as s:
        s.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5000000\r\n\r\n")
        done = threading.Event()

        def send():
            try:
                for _ in range(100):
                    s.sendall(b"x" * 10000)
            except OSError:
                pass
            done.set()
        threading.Thread(target=send, daemon=True).start()
        assert Answers(s).next()[0] == 413
        assert done.wait(20 * SLOW)


def test_expect_continue_is_answered_before_the_body(router):
    with router.connect() as s:
        s.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n")
        a = Answers(s)
        assert a.next()[0] == 100
        s.sendall(b"{}")
        assert a.next()[0] == 400  # no messages
        s.sendall(HEALTH)
        assert a.next()[0] == 200


def test_chunked_bodies_are_put_together(router):
    parts = [b'{"mess', b'ages": []', b"}"]
    raw = b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    raw += b"".join(b"%x\r\n%s\r\n" % (len(p), p) for p in parts) + b"0\r\n\r\n"
    (status, _, body), (after, _, _) = ask(router, raw + HEALTH, 2)
    assert status == 400 and "messages" in body.decode() and after == 200


def test_a_head_that_drips_is_cut_at_its_deadline(router):
    """Bytes that keep coming do not move the deadline."""
    with router.connect() as s:
        s.settimeout(20 * SLOW)
        start = time.monotonic()
        got = b""
        s.sendall(b"GET /health HTTP/1.1\r\n")
        try:
            while time.monotonic() - start < 15 * SLOW:
                s.sendall(b"X")
                time.sleep(0.1)
                s.setblocking(False)
                try:
                    got = s.recv(65536)
                    break
                except BlockingIOError:
                    pass
                finally:
                    s.settimeout(20 * SLOW)
        except OSError:
            pass
        assert got.startswith(b"HTTP/1.1 408 ")


def test_a_body_that_stops_is_cut_at_its_deadline(router):
    with router.connect() as s:
        s.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nab")
        a = Answers(s)
        assert a.next()[0] == 408 and a.closed()


def test_many_half_requests_do_not_stop_others(router):
    idle = [router.connect() for _ in range(200)]
    try:
        for s in idle:
            s.sendall(b"GET /health HT")
        assert ask(router, HEALTH)[0][0] == 200
    finally:
        for s in idle:
            s.close()
    wait_until("connections closed", lambda: router.metric("baton_router_connections") <= 2)


def test_paths_and_methods_that_are_not_there(router):
    assert get(router.url + "/nope")[0] == 404
    (status, headers, _), = ask(router, b"DELETE /health HTTP/1.1\r\nHost: a\r\n\r\n")
    assert status == 405 and "GET" in headers["allow"]
    (status, headers, _), = ask(router, b"OPTIONS /v1/chat/completions HTTP/1.1\r\nHost: a\r\n\r\n")
    assert status == 204 and "POST" in headers["allow"]


def test_models_health_ready_metrics_workers(router):
    assert [m.id for m in router.client().models.list()] == ["mock"]
    assert router.client().models.retrieve("mock").id == "mock"
    assert get(router.url + "/v1/models/other")[0] == 404
    for path in ("/health", "/ready", "/metrics", "/workers"):
        assert get(router.url + path)[0] == 200
    workers = json.loads(get(router.url + "/workers")[1])["workers"]
    assert [w["role"] for w in workers] == ["prefill", "decode"]
    assert all(w["state"] == "ready" for w in workers)


def test_a_taken_port_is_a_clear_error(router, tokenizer_json, tmp_path):
    for threads in (1, 2):
        p = Process("router",
                    ["--prefill", "127.0.0.1:1", "--decode", "127.0.0.1:2", "--tokenizer-path", tokenizer_json,
                     "--host", "127.0.0.1", "--port", router.port, "--router-threads", threads], tmp_path / "log")
        assert p.p.wait(20 * SLOW) == 1
        assert f"port {router.port}" in p.text()


@pytest.mark.parametrize("args,word", [
    ([], "--prefill"),
    (["--prefill", "a:1"], "--decode"),
    (["--prefill", "a", "--decode", "b:1"], "HOST:PORT"),
    (["--prefill", "a:1", "--decode", "b:1"], "--tokenizer-path"),
    (["--prefill", "a:1", "--decode", "b:1", "--tokenizer-path", "/nonexistent"], "/nonexistent"),
    (["--bogus"], "--bogus"),
    (["--port", "99999"], "--port"),
])
def test_start_up_mistakes_are_named(tmp_path, args, word):
    p = Process("router", args, tmp_path / "log")
    assert p.p.wait(20 * SLOW) == 1
    assert word in p.text()


def test_several_threads_share_the_port(tmp_path, tokenizer_json):
    c = MockCluster(tmp_path, tokenizer_json, router_args=["--router-threads", 3])
    try:
        for _ in range(20):
            assert get(c.url + "/health")[0] == 200
    finally:
        c.stop()


def test_without_workers_the_router_lives_and_is_not_ready(tmp_path, tokenizer_json):
    c = MockCluster(tmp_path, tokenizer_json, start=False)
    for p in [*c.decodes, *c.prefills]:
        p.kill()
    try:
        wait_until("router up", lambda: get(c.url + "/health")[0] == 200)
        wait_until("router not ready", lambda: get(c.url + "/ready")[0] == 503)
        c.start_prefill(0)
        c.start_decode(0)
        wait_until("router ready", c.ready)
    finally:
        c.stop()
