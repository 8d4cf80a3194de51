"""Shared by the integration tests: checkpoints, clusters of real processes, ports, namespaces.

The binaries under test are those of $BATON_BUILD (default: build in the source root). Everything runs on
loopback or in network namespaces that the test makes itself; every process is ended by its own handle.
"""
import contextlib
import fcntl
import gzip
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BUILD = Path(os.environ.get("BATON_BUILD", ROOT / "build"))
SANITIZE = os.environ.get("BATON_SANITIZE", "")
CPU_ISA = os.environ.get("BATON_TEST_CPU_ISA", "")  # of every process that computes, unless a test chose one
SLOW = 8 if SANITIZE or CPU_ISA == "ref" else 1  # stretches every bound, never the meaning of a test
BINARY = {
    "prefill": BUILD / "prefill/baton-prefill",
    "decode": BUILD / "decode/baton-decode",
    "router": BUILD / "router/baton-router",
    "baton": BUILD / "deploy/baton/baton",
    "mock": BUILD / "tests/lib/mock_decode",
}


def with_isa(name, args):
    """The arguments of a process, with the instruction set that this run asks for."""
    computes = name in ("prefill", "decode", "logits")
    return [*args, "--cpu-isa", CPU_ISA] if CPU_ISA and computes and "--cpu-isa" not in args else list(args)


def run_baton(*args, input=None, timeout=600, check=True):
    """Runs the baton tool; returns its standard output as text."""
    args = with_isa(args[0], args)
    r = subprocess.run([str(BINARY["baton"]), *map(str, args)], input=input, timeout=timeout,
                       capture_output=True, text=True)
    if check and r.returncode != 0:
        raise AssertionError(f"baton {args[0]} exited with {r.returncode}: {r.stderr[-2000:]}")
    return r.stdout if check else r


def json_lines(command, lines, *args):
    """Feeds JSON lines to a baton command; returns one object for each."""
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    out = run_baton(command, *args, input=text).split("\n")
    assert out[-1] == "" and len(out) - 1 == len(lines), f"{len(out) - 1} answers to {len(lines)} lines"
    return [json.loads(line) for line in out[:-1]]


def own_ports():
    """The ports of this process, in turn: 2,000 that no other process of these tests has (a lock says so, for as long as it
    lives), the upper half for admin. All are below those that the kernel gives to outgoing connections: a worker that is
    killed gets its ports again."""
    for low in range(10000, 32000, 2000):
        with contextlib.suppress(OSError):
            lock = open(Path(tempfile.gettempdir()) / f"baton-test-ports-{low}", "w")
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            while lock:
                yield from range(low, low + 1000)
    raise AssertionError("every range of test ports is taken: are ten other runs of these tests at work?")


PORTS = own_ports()


def free_port():
    """A port p that is free, with p + 1000 free as well (the worker's admin port)."""
    while True:
        p = next(PORTS)
        with socket.socket() as a, socket.socket() as b, contextlib.suppress(OSError):
            a.bind(("127.0.0.1", p))
            b.bind(("127.0.0.1", p + 1000))
            return p


def http_get(url, timeout=5):
    """-> (status, text); a status of 0: no connection."""
    try:
        with urllib.request.urlopen(url, timeout=timeout) as r:
            return r.status, r.read().decode()
    except urllib.error.HTTPError as e:
        return e.code, e.read().decode()
    except OSError as e:
        return 0, str(e)


def wait_until(what, check, seconds=60):
    """Polls check() until it returns something true; fails after the bound."""
    end = time.monotonic() + seconds * SLOW
    while time.monotonic() < end:
        value = check()
        if value:
            return value
        time.sleep(0.05)
    raise AssertionError(f"not within {seconds * SLOW} s: {what}")


def metric(url, name):
    """The sum of a metric over its labels, from a /metrics page; or one line of it, name{label="value"}."""
    status, text = http_get(url + "/metrics")
    assert status == 200, text
    return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines()
               if name in (line.split("{")[0].split(" ")[0], line.rsplit(" ", 1)[0]))


class Process:
    """One of our binaries, with its log in a file."""

    def __init__(self, name, args, log, prefix=(), env=None):
        self.name, self.log = name, log
        self.file = open(log, "ab")
        args = with_isa(name, args)
        self.p = subprocess.Popen([*prefix, str(BINARY[name]), *map(str, args)], stdout=self.file,
                                  stderr=self.file, env={**os.environ, **(env or {})})

    def text(self):
        return Path(self.log).read_text(errors="replace")

    def alive(self):
        return self.p.poll() is None

    def kill(self):
        self.p.kill()
        self.p.wait()

    def stop(self, timeout=60):
        """SIGTERM and a clean end; returns the exit status."""
        if self.alive():
            self.p.send_signal(signal.SIGTERM)
        try:
            self.p.wait(timeout * SLOW)
        except subprocess.TimeoutExpired:
            self.p.kill()
            self.p.wait()
            raise AssertionError(f"{self.name} did not stop on SIGTERM: {self.text()[-3000:]}")
        finally:
            self.file.close()
        assert "ERROR: AddressSanitizer" not in self.text() and "runtime error" not in self.text() \
            and "ERROR: LeakSanitizer" not in self.text() and "WARNING: ThreadSanitizer" not in self.text(), \
            self.text()[-6000:]
        return self.p.returncode


class Cluster:
    """Router, prefill and decode workers on loopback."""

    def __init__(self, tmp, model, n_prefill=1, n_decode=1, prefill_args=(), decode_args=(),
                 router_args=(), model_of=None):
        self.tmp, self.model = Path(tmp), model
        self.prefill_args, self.decode_args = prefill_args, decode_args
        self.prefill_ports = [free_port() for _ in range(n_prefill)]
        self.decode_ports = [free_port() for _ in range(n_decode)]
        self.prefills = [self.start_prefill(i, (model_of or {}).get("prefill")) for i in range(n_prefill)]
        self.decodes = [self.start_decode(i) for i in range(n_decode)]
        self.port = free_port()
        args = []
        for p in self.prefill_ports:
            args += ["--prefill", f"127.0.0.1:{p}"]
        for p in self.decode_ports:
            args += ["--decode", f"127.0.0.1:{p}"]
        self.router = Process("router", [*args, "--tokenizer-path", model, "--host", "127.0.0.1", "--port",
                                         self.port, *router_args], self.tmp / "router.log")
        self.url = f"http://127.0.0.1:{self.port}"

    def start_prefill(self, i, model=None):
        return Process("prefill", ["--model-path", model or self.model, "--host", "127.0.0.1", "--port",
                                   self.prefill_ports[i], *self.prefill_args], self.tmp / f"prefill{i}.log")

    def start_decode(self, i):
        return Process("decode", ["--model-path", self.model, "--host", "127.0.0.1", "--port",
                                  self.decode_ports[i], *self.decode_args], self.tmp / f"decode{i}.log")

    def prefill_admin(self, i=0):
        return f"http://127.0.0.1:{self.prefill_ports[i] + 1000}"

    def decode_admin(self, i=0):
        return f"http://127.0.0.1:{self.decode_ports[i] + 1000}"

    def wait_ready(self):
        def ready():
            for p in [*self.prefills, *self.decodes, self.router]:
                assert p.alive(), f"{p.name} ended: {p.text()[-3000:]}"
            return http_get(self.url + "/ready")[0] == 200
        wait_until("router ready", ready, 120)
        for url in [self.prefill_admin(i) for i in range(len(self.prefills))]:
            wait_until("prefill ready", lambda url=url: http_get(url + "/ready")[0] == 200, 60)
        return self

    def client(self, **kw):
        import openai
        return openai.OpenAI(base_url=self.url + "/v1", api_key="none", max_retries=0,
                             timeout=120 * SLOW, **kw)

    def stop(self):
        """Ends all; every process must end cleanly, without a sanitizer's word."""
        for p in [self.router, *self.decodes, *self.prefills]:
            killed = not p.alive()
            code = p.stop()
            assert killed or code == 0, f"{p.name} exited with {code}: {p.text()[-3000:]}"


@pytest.fixture
def process(tmp_path):
    """A factory: process(name, args, log name, **kw) -> Process; what still runs at the end is killed."""
    made = []

    def start(name, args, log=None, **kw):
        made.append(Process(name, args, tmp_path / (log or f"{name}.log"), **kw))
        return made[-1]

    yield start
    for p in made:
        if p.alive():
            p.kill()


@pytest.fixture(scope="session")
def tokenizer_json(tmp_path_factory):
    """The real tokenizer, unpacked."""
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    with gzip.open(ROOT / "tests/data/text/tokenizer.json.gz") as f, open(path, "wb") as out:
        shutil.copyfileobj(f, out)
    return path


@pytest.fixture(scope="session")
def demo_model(tmp_path_factory, tokenizer_json):
    """A small random checkpoint with the real vocabulary."""
    path = tmp_path_factory.mktemp("model") / "demo"
    run_baton("demo-checkpoint", path, "--tokenizer", tokenizer_json)
    return path


@pytest.fixture
def cluster(tmp_path, demo_model):
    """A factory: cluster(n_prefill=2, ...) -> a ready Cluster, stopped and checked at the test's end."""
    made = []

    def make(**kw):
        kw.setdefault("model", demo_model)
        c = Cluster(tmp_path, **kw)
        made.append(c)
        return c.wait_ready()

    yield make
    for c in made:
        c.stop()
