"""TLS for clients, sockets with and without it, mTLS with workers, traces: the router before mock workers."""
import contextlib
import http.client
import http.server
import json
import shutil
import socket
import ssl
import subprocess
import threading
import time

import pytest

from conftest import SLOW, free_port, wait_until
from mock_cluster import MockCluster, directive

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl command makes certificates")
OFF = {"chat_template_kwargs": {"thinking": False}}


@pytest.fixture(scope="module")
def pki(tmp_path_factory):
    """ca, other_ca; router, worker, stranger: certificates for 127.0.0.1."""
    d = tmp_path_factory.mktemp("pki")

    def run(*args):
        subprocess.run(["openssl", *map(str, args)], check=True, capture_output=True, timeout=60)
    for ca in ("ca", "other_ca"):
        run("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", 2,
            "-subj", f"/CN={ca}", "-keyout", d / f"{ca}.key", "-out", d / f"{ca}.pem")
    for name, ca in (("router", "ca"), ("worker", "ca"), ("stranger", "other_ca")):
        ext = d / f"{name}.ext"
        ext.write_text("subjectAltName=IP:127.0.0.1,DNS:localhost\n")
        run("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", f"/CN={name}",
            "-keyout", d / f"{name}.key", "-out", d / f"{name}.csr")
        run("x509", "-req", "-in", d / f"{name}.csr", "-CA", d / f"{ca}.pem", "-CAkey", d / f"{ca}.key",
            "-CAcreateserial", "-days", 2, "-extfile", ext, "-out", d / f"{name}.pem")
    return d


@pytest.fixture
def cluster(tmp_path, tokenizer_json):
    made = []

    def make(**kw):
        own = tmp_path / str(len(made))
        own.mkdir()
        made.append(MockCluster(own, tokenizer_json, **kw))
        return made[-1]
    yield make
    for c in made:
        c.stop()


def https(c, pki):
    context = ssl.create_default_context(cafile=pki / "ca.pem")
    return http.client.HTTPSConnection("127.0.0.1", c.port, timeout=30 * SLOW, context=context)


def request(h, method, path, body=None, headers=None):
    h.request(method, path, None if body is None else json.dumps(body), headers or {})
    r = h.getresponse()
    return r.status, r.read()


def chat(do, **kw):
    return {"model": "m", "messages": [{"role": "user", "content": directive(**do)}], **OFF, **kw}


def ready(c, pki):
    try:
        return request(https(c, pki), "GET", "/ready")[0] == 200
    except OSError:
        return False


def up(c):
    try:
        return request(http.client.HTTPConnection("127.0.0.1", c.port, timeout=5 * SLOW), "GET", "/health")[0] == 200
    except OSError:
        return False


def test_clients_speak_tls(cluster, pki):
    c = cluster(router_args=["--ssl-certfile", pki / "router.pem", "--ssl-keyfile", pki / "router.key"], start=False)
    wait_until("ready", lambda: ready(c, pki))
    h = https(c, pki)
    for _ in range(3):  # keep-alive
        status, body = request(h, "POST", "/v1/chat/completions", chat({"text": "hello"}))
        assert status == 200 and json.loads(body)["choices"][0]["message"]["content"] == "hello"
    # A large body and a long stream.
    h.request("POST", "/v1/chat/completions", json.dumps({**chat({}), "stream": True, "messages": [
        {"role": "user", "content": "word " * 3000 + directive(text="word " * 500)}]}))
    events = [json.loads(line[6:]) for line in h.getresponse().read().split(b"\n")
              if line.startswith(b"data: {")]
    assert "".join(e["choices"][0]["delta"].get("content") or "" for e in events if e["choices"]) == "word " * 500
    # Without TLS: no answer, no harm.
    with socket.create_connection(("127.0.0.1", c.port), timeout=10 * SLOW) as s:
        s.sendall(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n")
        with contextlib.suppress(ConnectionResetError):
            assert not s.makefile("rb").read().startswith(b"HTTP/1.1 200")
    # A client that leaves in the middle cancels.
    h = https(c, pki)
    h.request("POST", "/v1/chat/completions", json.dumps(chat({"text": "a b c", "hang_after": 2}, rid="leaver",
                                                              stream=True)))
    h.getresponse()
    h.sock.close()
    h.close()
    wait_until("cancelled", lambda: "cancel leaver" in c.decodes[0].text())


def test_a_certificate_is_read_again_when_it_changes(cluster, pki, tmp_path):
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"

    def put(name, *files):
        for f in files:  # as a secret is replaced: another file under the same name
            new = f.with_suffix(".new")
            shutil.copy(pki / f"{name}{'.pem' if f == cert else '.key'}", new)
            new.rename(f)

    def subject():
        with socket.create_connection(("127.0.0.1", c.port), timeout=10 * SLOW) as s:
            with ssl.create_default_context(cafile=pki / "ca.pem").wrap_socket(
                    s, server_hostname="localhost") as t:
                return dict(x[0] for x in t.getpeercert()["subject"])["commonName"]
    put("router", cert, key)
    c = cluster(router_args=["--ssl-certfile", cert, "--ssl-keyfile", key], start=False)
    wait_until("ready", lambda: ready(c, pki))
    h = https(c, pki)
    assert request(h, "GET", "/health")[0] == 200 and subject() == "router"
    put("worker", cert)  # without its key: nothing changes
    wait_until("said so", lambda: "stays as it is" in c.router.text())
    assert subject() == "router"
    put("worker", key)
    wait_until("the other certificate", lambda: subject() == "worker")
    assert request(h, "GET", "/health")[0] == 200  # what was open stays
    assert c.router.text().count("stays as it is") == 1


@pytest.mark.parametrize("args,word", [
    (["--ssl-certfile", "router.pem"], "go together"),
    (["--ssl-certfile", "router.pem", "--ssl-keyfile", "worker.key"], "key"),
    (["--ssl-certfile", "nothing.pem", "--ssl-keyfile", "router.key"], "nothing.pem"),
    (["--worker-tls-ca", "ca.pem"], "certificate"),
    (["--worker-tls-ca", "ca.pem", "--worker-tls-cert", "router.pem", "--worker-tls-key", "ca.srl"], "PEM"),
    (["--otlp-traces-endpoint", "https://x:1"], "http://HOST:PORT"),
])
def test_wrong_settings_end_the_start(cluster, pki, args, word):
    c = cluster(router_args=[a if a.startswith("--") or ":" in a else pki / a for a in args], start=False)
    try:
        assert c.router.p.wait(20 * SLOW) == 1
        assert word in c.router.text(), c.router.text()
    finally:
        c.stop = lambda: [p.kill() or p.file.close() for p in [*c.decodes, *c.prefills]]


def test_workers_and_router_know_each_other_by_certificate(cluster, pki):
    def tls(who, ca="ca", prefix=""):
        return [f"--{prefix}tls-ca", pki / f"{ca}.pem", f"--{prefix}tls-cert", pki / f"{who}.pem",
                f"--{prefix}tls-key", pki / f"{who}.key"]
    c = cluster(both_args=tls("worker"), router_args=tls("router", prefix="worker-"))
    h = http.client.HTTPConnection("127.0.0.1", c.port, timeout=30 * SLOW)
    assert request(h, "POST", "/v1/chat/completions", chat({"text": "x"}))[0] == 200
    # A stranger, and one without a certificate, are not let in; nor does the router talk to a stranger.
    for args in (tls("stranger", prefix="worker-"), []):
        d = cluster(both_args=tls("worker"), router_args=args, start=False)
        wait_until("up", lambda: up(d))
        wait_until("refused", lambda: all(w["last_error"] for w in d.workers()))
        assert all(w["state"] != "ready" for w in d.workers())
    d = cluster(both_args=tls("stranger", ca="other_ca"), router_args=tls("router", prefix="worker-"), start=False)
    wait_until("up", lambda: up(d))
    wait_until("refused", lambda: d.router.text().count("is not there yet") >= 2)
    assert all(w["state"] != "ready" for w in d.workers())


def test_without_tracing_nothing_is_sent_on(cluster):
    c = cluster()
    h = http.client.HTTPConnection("127.0.0.1", c.port, timeout=30 * SLOW)
    assert request(h, "POST", "/v1/chat/completions", chat({"text": "x"}))[0] == 200
    assert "submit " in c.decodes[0].text() and "traceparent" not in c.decodes[0].text()


class Collector(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.got.append((self.path, json.loads(body)))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *args):
        pass


def test_traces_are_continued_and_exported(cluster):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", free_port()), Collector)
    server.got = []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        c = cluster(router_args=["--otlp-traces-endpoint", f"http://127.0.0.1:{server.server_port}"])
        h = http.client.HTTPConnection("127.0.0.1", c.port, timeout=30 * SLOW)
        trace, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
        for flags, rid in (("01", "kept"), ("00", "unsampled")):
            assert request(h, "POST", "/v1/chat/completions", chat({"text": "hidden words"}, rid=rid),
                           {"traceparent": f"00-{trace}-{parent}-{flags}"})[0] == 200
        assert request(h, "POST", "/v1/chat/completions", chat({"text": "x"}, rid="new"),
                       {"traceparent": f"00-{'0' * 32}-{parent}-01"})[0] == 200

        def spans():
            return [s for _, b in server.got for s in b["resourceSpans"][0]["scopeSpans"][0]["spans"]]
        wait_until("exported", lambda: len(spans()) >= 2, 20 * SLOW)
        assert {p for p, _ in server.got} == {"/v1/traces"}
        text = c.decodes[0].text()
        lines = {x.split()[1]: x.split()[2] for x in text.split("\n") if x.startswith("traceparent ")}
        assert lines["kept"].split("-")[1] == trace and lines["kept"].split("-")[2] != parent
        assert lines["unsampled"].endswith("-00")
        by_id = {a["value"]["stringValue"]: s for s in spans() for a in s["attributes"]
                 if a["key"] == "baton.request_id"}
        assert set(by_id) == {"kept", "new"}
        s = by_id["kept"]
        assert s["traceId"] == trace and s["parentSpanId"] == parent
        assert s["spanId"] == lines["kept"].split("-")[2]
        assert int(s["endTimeUnixNano"]) > int(s["startTimeUnixNano"])
        assert by_id["new"]["traceId"] != trace and "parentSpanId" not in by_id["new"]
        assert "hidden" not in json.dumps(server.got)
    finally:
        server.shutdown()
        server.server_close()


# ---- the socket itself, plain and TLS ----------------------------------------------------------------


@pytest.fixture(params=["plain", "tls"])
def front(request, cluster, pki):
    """-> (cluster, connect()): a raw connection of that kind, with a small window."""
    tls = ["--ssl-certfile", pki / "router.pem", "--ssl-keyfile", pki / "router.key"]
    c = cluster(router_args=tls if request.param == "tls" else [], start=False, context=1 << 20)
    context = ssl.create_default_context(cafile=pki / "ca.pem")

    def connect():
        s = socket.socket()
        s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        s.settimeout(60 * SLOW)
        s.connect(("127.0.0.1", c.port))
        return context.wrap_socket(s, server_hostname="127.0.0.1") if request.param == "tls" else s

    def is_up():
        with contextlib.suppress(OSError), connect() as s:
            s.sendall(b"GET /ready HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            return s.makefile("rb").readline().split()[1] == b"200"
    wait_until("ready", is_up)
    return c, connect


def post(path, body):
    data = json.dumps(body).encode()
    return b"POST %s HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%s" % (path.encode(), len(data), data)


def answer(f):
    """-> (status, body) of the next answer."""
    status, n = int(f.readline().split()[1]), 0
    while (line := f.readline()) != b"\r\n":
        if line.lower().startswith(b"content-length:"):
            n = int(line.split()[1])
    return status, f.read(n)


def test_large_bodies_and_answers_that_the_client_takes_slowly_arrive_whole(front):
    c, connect = front
    text = "word " * 200000
    with connect() as s:
        f = s.makefile("rb")
        for _ in range(2):
            s.sendall(post("/tokenize", {"prompt": text}))
            time.sleep(0.2)  # the socket is full by now, mostly; nothing depends on it
            status, body = answer(f)
            assert status == 200 and json.loads(body)["count"] == len(json.loads(body)["tokens"]) > 200000


def test_requests_that_pile_up_behind_a_long_answer_are_held_and_then_answered_in_order(front):
    c, connect = front
    with connect() as s:
        s.sendall(post("/v1/chat/completions", chat({"text": "first", "hang_after": 1}, rid="held")))
        wait_until("runs", lambda: "submit held" in c.decodes[0].text())
        # More than is held: the rest waits in the sockets, or with the sender.
        pile = b"".join(post("/tokenize", {"prompt": f"{i} " + "x" * 500}) for i in range(1000))
        sender = threading.Thread(target=s.sendall, args=(pile,))
        sender.start()
        with connect() as other:
            other.sendall(post("/abort_request", {"rid": "held"}))
            assert answer(other.makefile("rb"))[0] == 200
        f = s.makefile("rb")
        answer(f)
        first = [answer(f) for _ in range(1000)]
        sender.join(60 * SLOW)
        assert not sender.is_alive() and {status for status, _ in first} == {200}
        with connect() as other:
            g = other.makefile("rb")
            for i in (0, 1, 500, 999):
                other.sendall(post("/tokenize", {"prompt": f"{i} " + "x" * 500}))
                assert answer(g) == first[i]


def test_a_client_that_never_reads_is_cut_off_and_others_are_served(front):
    c, connect = front
    with connect() as s:
        s.sendall(post("/v1/chat/completions", chat({"text": "some words " * 400, "repeat": 200, "batch": 4},
                                                    stream=True, rid="sleeper")))
        wait_until("cut off", lambda: "cancel sleeper" in c.decodes[0].text())
        with connect() as other:
            other.sendall(post("/v1/chat/completions", chat({"text": "fine"})))
            assert b"fine" in answer(other.makefile("rb"))[1]


@pytest.mark.parametrize("garbage", [b"", b"\x16", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc", b"\x00" * 70000, b"GET /"])
def test_connections_that_break_off_at_any_point_leave_nothing(front, garbage):
    c, connect = front
    for _ in range(20):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", c.port), timeout=10 * SLOW) as s:
            s.sendall(garbage)
    with connect() as s:
        f = s.makefile("rb")

        def connections():
            s.sendall(b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n")
            return [line for line in answer(f)[1].decode().split("\n")
                    if line.startswith("baton_router_connections ")][0].split()[1]
        wait_until("only this one", lambda: float(connections()) == 1)
