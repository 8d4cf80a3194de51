"""A router before mock workers (tests/lib/mock_decode.c), for tests that need no model."""
import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUILD = Path(os.environ.get("BATON_BUILD", ROOT / "build"))
SLOW = 8 if os.environ.get("BATON_SANITIZE") else 1


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def wait_until(what, check, seconds=20):
    end = time.monotonic() + seconds * SLOW
    while time.monotonic() < end:
        value = check()
        if value:
            return value
        time.sleep(0.02)
    raise AssertionError(f"not within {seconds * SLOW} s: {what}")


def get(url):
    """-> (status, text); status 0: no connection."""
    try:
        with urllib.request.urlopen(url, timeout=10 * SLOW) as r:
            return r.status, r.read().decode()
    except urllib.error.HTTPError as e:
        return e.code, e.read().decode()
    except OSError as e:
        return 0, str(e)


class Program:
    def __init__(self, path, args, log):
        self.log = Path(log)
        self.file = open(log, "ab")
        self.p = subprocess.Popen([str(path), *map(str, args)], stdout=self.file, stderr=self.file)

    def text(self):
        return self.log.read_text(errors="replace")

    def kill(self):
        self.p.kill()
        self.p.wait()

    def stop(self):
        if self.p.poll() is None:
            self.p.send_signal(signal.SIGTERM)
        try:
            self.p.wait(30 * SLOW)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError("did not end on SIGTERM: " + self.text()[-3000:])
        finally:
            self.file.close()
        for word in ("AddressSanitizer", "runtime error", "LeakSanitizer", "ThreadSanitizer"):
            assert word not in self.text(), self.text()[-6000:]
        return self.p.returncode


class MockCluster:
    """n mock decode workers, n mock prefill workers, one router."""

    def __init__(self, tmp, tokenizer, n_decode=1, n_prefill=1, router_args=(), context=8192, start=True):
        self.tmp, self.tokenizer, self.context = Path(tmp), tokenizer, context
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
        self.router = Program(BUILD / "router/baton-router", [*args, *router_args], self.tmp / "router.log")
        self.url = f"http://127.0.0.1:{self.port}"
        if start:
            wait_until("router ready", self.ready)

    def ready(self):
        assert self.router.p.poll() is None, self.router.text()[-3000:]
        if get(self.url + "/ready")[0] != 200:
            return False
        workers = json.loads(get(self.url + "/workers")[1])["workers"]
        return all(w["state"] == "ready" for w in workers)

    def mock(self, args, log):
        return Program(BUILD / "tests/lib/mock_decode",
                       ["--tokenizer-path", self.tokenizer, "--context-length", self.context, *args],
                       self.tmp / log)

    def start_prefill(self, i):
        self.prefills[i] = self.mock(["--prefill-port", self.prefill_ports[i]], f"prefill{i}.log")

    def start_decode(self, i):
        self.decodes[i] = self.mock(["--port", self.decode_ports[i]], f"decode{i}.log")

    def client(self):
        import openai
        return openai.OpenAI(base_url=self.url + "/v1", api_key="none", max_retries=0, timeout=60 * SLOW)

    def connect(self):
        """A raw connection."""
        s = socket.create_connection(("127.0.0.1", self.port), timeout=20 * SLOW)
        s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return s

    def metric(self, name):
        return sum(float(line.rsplit(" ", 1)[1]) for line in get(self.url + "/metrics")[1].splitlines()
                   if line.split("{")[0].split(" ")[0] == name)

    def stop(self):
        code = self.router.stop()
        for p in [*self.decodes, *self.prefills]:
            p.kill()
            p.file.close()
        assert code == 0, f"the router exited with {code}: {self.router.text()[-3000:]}"


def directive(**kw):
    """The user message that tells the mock what to answer."""
    return "mock" + json.dumps(kw, ensure_ascii=False)
