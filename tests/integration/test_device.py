"""--device: what cannot run says why before the port opens, and the CPU still works; where a GPU is, prefill and
decode workers on it give the tokens of one process."""
import ctypes
import re
import shutil
import subprocess

import pytest

from conftest import BINARY, free_port, http_get, run_baton, wait_until
from test_handoff import ids_of_length
from test_ranks import ask


def gpu_missing():
    """Why there is no GPU to test on; None: there is one."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError as e:
        return f"no NVIDIA driver: {e}"
    count = ctypes.c_int(0)
    if cuda.cuInit(0) != 0 or cuda.cuDeviceGetCount(ctypes.byref(count)) != 0 or count.value == 0:
        return "the driver shows no GPU"
    return None


MISSING = gpu_missing()


def refusal(process, model, device):
    w = process("decode", ["--model-path", model, "--host", "127.0.0.1", "--port", free_port(), "--device", device])
    wait_until("the worker's end", lambda: not w.alive(), 60)
    text = w.text()
    assert w.stop() == 1, text
    return text


def test_a_device_that_is_none_is_named(demo_model, process):
    for device in ("tpu:0", "cuda:", "cuda:x", "cuda:-1", "cuda:99999"):
        assert f"device '{device}' is not cpu or cuda:N" in refusal(process, demo_model, device)


@pytest.mark.skipif(MISSING is None, reason="there is a GPU")
def test_without_a_gpu_the_reason_is_told_and_the_cpu_serves(demo_model, process):
    text = refusal(process, demo_model, "cuda:0")
    assert "this build has no CUDA kernels" in text or "there is no NVIDIA driver on this machine" in text \
        or "there is no GPU 0" in text, text
    assert "--device cpu works without" in text
    r = run_baton("logits", "--model-path", demo_model, "--tokens", "1,2,3", "--device", "cuda", "--out", "/dev/null",
                  check=False)
    assert r.returncode == 1 and "device cuda:0: " in r.stderr, r.stderr
    port = free_port()
    w = process("decode", ["--model-path", demo_model, "--host", "127.0.0.1", "--port", port, "--device", "cpu"])
    wait_until("ready", lambda: http_get(f"http://127.0.0.1:{port + 1000}/ready")[0] == 200)
    assert w.stop() == 0


@pytest.mark.parametrize("name", ["prefill", "decode", "router", "baton"])
def test_no_library_of_cuda_is_linked(name):
    """Toolkit, driver and NCCL are looked for when they are used: no binary asks the loader for one of them."""
    needed = subprocess.run(["ldd", BINARY[name]], capture_output=True, text=True, check=True).stdout
    assert "libc.so" in needed
    assert not re.search(r"libcuda|libcudart|libnccl|libnvidia|not found", needed), needed


def hidden(paths, command):
    """The command where these files are empty, in a namespace of its own."""
    mounts = "".join(f"mount --bind /dev/null '{p}'; " for p in paths)
    return subprocess.run(["unshare", "--mount", "sh", "-ec", mounts + 'exec "$0" "$@"', *map(str, command)],
                          capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.skipif(shutil.which("unshare") is None or hidden([], ["true"]).returncode != 0,
                    reason="no mount namespaces here (root)")
def test_the_cpu_serves_where_neither_toolkit_nor_driver_is(demo_model, tmp_path):
    known = subprocess.run(["ldconfig", "-p"], capture_output=True, text=True, check=True).stdout
    paths = [line.split("=> ")[1] for line in known.splitlines()
             if re.match(r"\s*(libcuda|libcudart|libnccl|libnvidia)", line)]
    logits = [BINARY["baton"], "logits", "--model-path", demo_model, "--tokens", "1,2,3", "--out", tmp_path / "logits"]
    assert (r := hidden(paths, logits)).returncode == 0, r.stderr
    r = hidden(paths, [*logits, "--device", "cuda:0"])
    assert r.returncode == 1 and "--device cpu works without" in r.stderr, r.stderr
    assert "no NVIDIA driver on this machine" in r.stderr or "this build has no CUDA kernels" in r.stderr, r.stderr


@pytest.mark.skipif(MISSING is not None, reason=str(MISSING))
@pytest.mark.parametrize("transport", ["shm", "tcp"])
def test_prefill_and_decode_on_one_gpu_give_the_tokens_of_one_process(demo_model, process, transport):
    base = ["--model-path", demo_model, "--host", "127.0.0.1", "--device", "cuda:0", "--kv-transport", transport,
            "--max-total-tokens", 16384]
    ports = free_port(), free_port()
    workers = [process("prefill", [*base, "--port", ports[0]]),
               process("decode", [*base, "--port", ports[1]])]
    alone_port = free_port()
    alone = process("decode", [*base, "--port", alone_port, "--local-prefill-max-tokens", 8192], log="alone.log")
    for w, port in zip([*workers, alone], [*ports, alone_port]):
        wait_until(w.name, lambda port=port: http_get(f"http://127.0.0.1:{port + 1000}/ready")[0] == 200)
    for n in (7, 300, 2000):
        ids = ids_of_length(n, 1000 + n)
        assert ask(ports, ids=ids)["ids"] == ask((ports[0], alone_port), ids=ids)["ids"]
    for w in [*workers, alone]:
        assert w.stop() == 0
