"""A router before mock workers (tests/lib/mock_decode.c), for tests that need no model."""
import json
import socket
import urllib.error
import urllib.request
from pathlib import Path

from conftest import SLOW, Process, free_port, http_get, metric, wait_until


class MockCluster:
    """n mock decode workers, n mock prefill workers, one router."""

    def __init__(self, tmp, tokenizer, n_decode=1, n_prefill=1, router_args=(), context=8192, start=True,
                 mock_args=(), both_args=()):
        self.tmp, self.tokenizer, self.context = Path(tmp), tokenizer, context
        self.mock_args, self.both_args = mock_args, both_args  # of decode mocks; of all mocks
        self.prefill_ports = [free_port() for _ in range(n_prefill)]
        self.decode_ports = [free_port() for _ in range(n_decode)]
        self.prefills = [None] * n_prefill
        self.decodes = [None] * n_decode
        for i in range(n_prefill):
            self.start_prefill(i)
        for i in range(n_decode):
            self.start_decode(i)
        self.port = free_port()
        args = ["--tokenizer-path", tokenizer, "--host", "127.0.0.1", "--port", self.port, "--log-level",
                "debug", "--served-model-name", "mock"]
        for p in self.prefill_ports:
            args += ["--prefill", f"127.0.0.1:{p}"]
        for p in self.decode_ports:
            args += ["--decode", f"127.0.0.1:{p}"]
        self.router = Process("router", [*args, *router_args], self.tmp / "router.log")
        self.url = f"http://127.0.0.1:{self.port}"
        if start:
            wait_until("router ready", self.ready)

    def ready(self):
        assert self.router.alive(), self.router.text()[-3000:]
        if http_get(self.url + "/ready")[0] != 200:
            return False
        workers = json.loads(http_get(self.url + "/workers")[1])["workers"]
        return all(w["state"] == "ready" for w in workers)

    def mock(self, args, log):
        return Process("mock", ["--tokenizer-path", self.tokenizer, "--context-length", self.context, *self.both_args,
                                *args],
                       self.tmp / log)

    def start_prefill(self, i):
        self.prefills[i] = self.mock(["--prefill-port", self.prefill_ports[i]], f"prefill{i}.log")

    def start_decode(self, i, args=()):
        self.decodes[i] = self.mock(["--port", self.decode_ports[i], *self.mock_args, *args], f"decode{i}.log")

    def workers(self):
        return json.loads(http_get(self.url + "/workers")[1])["workers"]

    def worker(self, role, i):
        port = (self.prefill_ports if role == "prefill" else self.decode_ports)[i]
        return next(w for w in self.workers() if w["address"] == f"127.0.0.1:{port}")

    def client(self):
        import openai
        return openai.OpenAI(base_url=self.url + "/v1", api_key="none", max_retries=0, timeout=60 * SLOW)

    def connect(self):
        """A raw connection."""
        s = socket.create_connection(("127.0.0.1", self.port), timeout=20 * SLOW)
        s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return s

    def metric(self, name):
        return metric(self.url, name)

    def stop(self):
        try:
            code = self.router.stop()
        finally:
            for p in [*self.decodes, *self.prefills]:
                p.kill()
                p.file.close()
        assert code == 0, f"the router exited with {code}: {self.router.text()[-3000:]}"


def directive(**kw):
    """The user message that tells the mock what to answer."""
    return "mock" + json.dumps(kw, ensure_ascii=False)


def post(c, path, body):
    """-> (status, object)"""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    r = urllib.request.Request(c.url + path, data=data, method="POST")
    try:
        with urllib.request.urlopen(r, timeout=30 * SLOW) as f:
            return f.status, json.loads(f.read())
    except urllib.error.HTTPError as e:
        return e.code, json.loads(e.read())


def sse(c, path, body):
    """The events of a stream: [(name or None, data)]."""
    r = urllib.request.Request(c.url + path, data=json.dumps(body).encode(), method="POST")
    out, name = [], None
    with urllib.request.urlopen(r, timeout=60 * SLOW) as f:
        for line in f.read().decode().splitlines():
            if line.startswith("event: "):
                name = line[7:]
            elif line.startswith("data: "):
                out.append((name, line[6:]))
                name = None
    return out
