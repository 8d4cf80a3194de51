"""TLS for clients, mTLS with workers, traces: the router before mock workers."""
import contextlib
import http.client
import http.server
import json
import shutil
import socket
import ssl
import subprocess
import threading

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
