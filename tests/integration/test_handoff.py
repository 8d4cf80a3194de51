"""Tokens from P and D are those of one process, over shared memory and over TCP between two namespaces."""
import json
import os
import signal
import subprocess
import threading

import pytest

from conftest import BINARY, free_port, http_get, json_lines, metric, run_baton, wait_until

LENGTHS = [1, 127, 128, 129, 255, 256, 257, 1000, 5000]
NEW = 12


def ids_of_length(n, vocab=120000):
    """Token ids of a raw prompt; deterministic, all different from the special ones."""
    return [(i * 7919 + 13) % vocab + 3 for i in range(n)]


def one_process(model, ids, tmp_path, isa="auto"):
    f = tmp_path / "tokens"
    f.write_text(",".join(map(str, ids)))
    out = run_baton("logits", "--model-path", model, "--tokens-file", f, "--greedy", NEW, "--chunk-size", 512,
                    "--cpu-isa", isa)
    return json.loads(out)["greedy"]


def through_workers(decode, prefill, ids):
    """baton generate: one request straight to a decode worker, as a router would send it."""
    out = json_lines("generate", [{"ids": ids, "max_new_tokens": NEW, "temperature": 0, "ignore_eos": True}],
                     "--decode", decode, "--prefill", prefill)[0]
    assert "ids" in out, out
    return out


def check_all(model, decode, prefill, tmp_path, transport, isa="auto"):
    for n in LENGTHS:
        ids = ids_of_length(n)
        got = through_workers(decode, prefill, ids)
        assert got["ids"] == one_process(model, ids, tmp_path, isa), f"prompt of {n} tokens"
        assert got["stats"]["transport"].startswith(transport), got["stats"]
        reused = got["stats"].get("pages_reused", 0)  # lengths share their beginning
        assert got["stats"]["checksums_verified"] == (n + 255) // 256 - reused + 1


@pytest.mark.parametrize("isa", ["auto", "avx2"])
def test_one_host_over_shared_memory(demo_model, tmp_path, process, isa):
    ports = free_port(), free_port()
    workers = [process(role, ["--model-path", demo_model, "--host", "127.0.0.1", "--port", port,
                              "--kv-transport", "shm", "--cpu-isa", isa])
               for role, port in zip(("prefill", "decode"), ports)]
    for w, port in zip(workers, ports):
        wait_until(w.name, lambda port=port: http_get(f"http://127.0.0.1:{port + 1000}/ready")[0] == 200)
    check_all(demo_model, f"127.0.0.1:{ports[1]}", f"127.0.0.1:{ports[0]}", tmp_path, "shm", isa)
    admin = f"http://127.0.0.1:{ports[0] + 1000}"
    wait_until("the way's rate in the metrics",
               lambda: metric(admin, 'baton_kv_link_bytes_per_second{transport="shm"}') > 0)
    assert metric(admin, 'baton_kv_link_bytes_per_second{transport="tcp"}') == 0
    for w in workers:
        assert w.stop() == 0


def test_pages_travel_while_later_chunks_are_computed(demo_model, process):
    """By structure, not by time: with its last chunk P posts that chunk alone, the rest has gone before."""
    ports = free_port(), free_port()
    workers = [process(role, ["--model-path", demo_model, "--host", "127.0.0.1", "--port", port,
                              "--kv-transport", "shm", "--chunked-prefill-size", 512])
               for role, port in zip(("prefill", "decode"), ports)]
    for w, port in zip(workers, ports):
        wait_until(w.name, lambda port=port: http_get(f"http://127.0.0.1:{port + 1000}/ready")[0] == 200)
    stats = {n: through_workers(f"127.0.0.1:{ports[1]}", f"127.0.0.1:{ports[0]}",
                                [i + n for i in ids_of_length(n)])["stats"] for n in (512, 8192)}
    whole, chunked = stats[512], stats[8192]
    assert whole["last_bytes"] == whole["kv_bytes"] and whole["hidden_bytes"] == 0, whole
    assert chunked["last_bytes"] <= whole["last_bytes"], stats
    assert chunked["hidden_bytes"] >= (chunked["kv_bytes"] - chunked["last_bytes"]) / 2, chunked
    assert chunked["hidden_bytes"] <= chunked["kv_bytes"] - chunked["last_bytes"], chunked
    for w in workers:
        assert w.stop() == 0


def test_a_flipped_byte_of_an_early_chunk_is_found_and_sent_again(demo_model, tmp_path, process):
    """What comes before the last chunk is compared while that is computed; a difference is settled at the end."""
    ports = free_port(), free_port()
    workers = [process(role, ["--model-path", demo_model, "--host", "127.0.0.1", "--port", port,
                              "--chunked-prefill-size", 512, *more])
               for role, port, more in zip(("prefill", "decode"), ports, (["--inject-kv-flips", 1], []))]
    for w, port in zip(workers, ports):
        wait_until(w.name, lambda port=port: http_get(f"http://127.0.0.1:{port + 1000}/ready")[0] == 200)
    ids = ids_of_length(3000)
    got = through_workers(f"127.0.0.1:{ports[1]}", f"127.0.0.1:{ports[0]}", ids)
    assert got["ids"] == one_process(demo_model, ids, tmp_path)
    assert got["stats"]["retries"] == 1 and got["stats"]["checksums_verified"] == 13, got["stats"]
    admin = f"http://127.0.0.1:{ports[1] + 1000}"
    assert metric(admin, "baton_kv_checksum_mismatches_total") == 1
    assert metric(admin, "baton_kv_checksums_total") == 26
    for w in workers:
        assert w.stop() == 0


@pytest.mark.parametrize("end", ["thaws", "dies"])
def test_pages_of_a_frozen_prefill_worker_stay_in_quarantine_until_it_thaws_or_dies(demo_model, process, end):
    """Over shared memory nothing but the writer's own end proves that it writes no more."""
    ports = free_port(), free_port()
    workers = [process(role, ["--model-path", demo_model, "--host", "127.0.0.1", "--port", port,
                              "--kv-transport", "shm", *more])
               for role, port, more in zip(("prefill", "decode"), ports, (["--kv-rate-limit", 20000], []))]
    for w, port in zip(workers, ports):
        wait_until(w.name, lambda port=port: http_get(f"http://127.0.0.1:{port + 1000}/ready")[0] == 200)
    admin = f"http://127.0.0.1:{ports[1] + 1000}"
    free = metric(admin, "baton_kv_pages_free")
    line = json.dumps({"ids": ids_of_length(2000), "max_new_tokens": 4, "temperature": 0}) + "\n"
    asking = subprocess.Popen([str(BINARY["baton"]), "generate", "--decode", f"127.0.0.1:{ports[1]}", "--prefill",
                               f"127.0.0.1:{ports[0]}"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    asking.stdin.write(line)
    asking.stdin.close()
    wait_until("KV is on its way", lambda: metric(f"http://127.0.0.1:{ports[0] + 1000}",
                                                  "baton_prefill_prompt_tokens_total") > 0)
    workers[0].p.send_signal(signal.SIGSTOP)
    wait_until("pages in quarantine", lambda: metric(admin, "baton_kv_pages_quarantined") == 8)
    assert asking.wait(60) == 0 and "error" in asking.stdout.read()
    assert metric(admin, "baton_kv_pages_quarantined") == 8
    if end == "dies":
        workers[0].kill()
    else:
        workers[0].p.send_signal(signal.SIGCONT)
    wait_until("all pages free", lambda: metric(admin, "baton_kv_pages_quarantined") == 0
               and metric(admin, "baton_kv_pages_free") == free)
    for w in workers[1 if end == "dies" else 0:]:
        assert w.stop() == 0


#   namespace baton-p: 10.77.0.1  ──veth──  10.77.0.2 :namespace baton-d
@pytest.fixture
def namespaces():
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    tag = f"b{os.getpid() % 100000}"
    p, d = tag + "p", tag + "d"
    ip = lambda *a: subprocess.run(["ip", *a], check=True, capture_output=True, text=True)
    try:
        ip("netns", "add", p)
    except (OSError, subprocess.CalledProcessError) as e:
        pytest.skip(f"no network namespaces here: {getattr(e, 'stderr', e)}")
    try:
        ip("netns", "add", d)
        ip("link", "add", p, "netns", p, "type", "veth", "peer", "name", d, "netns", d)
        for ns, addr in ((p, "10.77.0.1/24"), (d, "10.77.0.2/24")):
            ip("-n", ns, "addr", "add", addr, "dev", ns)
            ip("-n", ns, "link", "set", "lo", "up")
            ip("-n", ns, "link", "set", ns, "up")
        yield p, d
    finally:
        for ns in (p, d):
            subprocess.run(["ip", "netns", "del", ns], capture_output=True)


def inside(ns, url):
    r = subprocess.run(["ip", "netns", "exec", ns, "curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", url],
                       capture_output=True, text=True)
    return r.stdout == "200"


def test_two_namespaces_over_tcp(demo_model, tmp_path, namespaces, process):
    p, d = namespaces
    prefill = process("prefill", ["--model-path", demo_model, "--port", 30000, "--kv-transport", "tcp"],
                      prefix=["ip", "netns", "exec", p])
    decode = process("decode", ["--model-path", demo_model, "--port", 30001, "--kv-transport", "tcp"],
                     prefix=["ip", "netns", "exec", d])
    wait_until("prefill", lambda: inside(p, "http://127.0.0.1:31000/ready"))
    wait_until("decode", lambda: inside(d, "http://127.0.0.1:31001/ready"))
    lines = "".join(json.dumps({"ids": ids_of_length(n), "max_new_tokens": NEW, "temperature": 0,
                                "ignore_eos": True}) + "\n" for n in LENGTHS)
    r = subprocess.run(["ip", "netns", "exec", d, str(BINARY["baton"]), "generate", "--decode",
                        "127.0.0.1:30001", "--prefill", "10.77.0.1:30000"], input=lines,
                       capture_output=True, text=True, timeout=600)
    assert r.returncode == 0, r.stderr
    for n, line in zip(LENGTHS, r.stdout.splitlines()):
        got = json.loads(line)
        assert got["ids"] == one_process(demo_model, ids_of_length(n), tmp_path), f"prompt of {n} tokens"
        assert got["stats"]["transport"].startswith("tcp"), got["stats"]
    assert prefill.stop() == 0 and decode.stop() == 0


def test_retracted_requests_end_with_the_tokens_they_would_have_had(demo_model, process):
    """Six requests at once in a pool for two: some are retracted, and every one gets its own tokens."""
    ports = free_port(), free_port()
    args = ["--model-path", demo_model, "--host", "127.0.0.1", "--max-total-tokens", 1024]
    workers = [process(role, [*args, "--port", port]) for role, port in zip(("prefill", "decode"), ports)]
    for w, port in zip(workers, ports):
        wait_until(w.name, lambda port=port: http_get(f"http://127.0.0.1:{port + 1000}/ready")[0] == 200)
    lengths, new, got = [100, 200, 240, 250, 260, 300], 160, {}

    def ask(n, line):
        got[n] = json_lines("generate", [line], "--decode", f"127.0.0.1:{ports[1]}",
                            "--prefill", f"127.0.0.1:{ports[0]}")[0]

    def line_of(n):
        ids = [i + n for i in ids_of_length(n)]  # no two begin alike: nobody shares a page
        return {"ids": ids, "max_new_tokens": new, "temperature": 0.8, "seed": n, "ignore_eos": True}

    threads = [threading.Thread(target=ask, args=(n, line_of(n))) for n in lengths]
    for t in threads:
        t.start()
    for t in threads:
        t.join(600)
    crowded = dict(got)
    assert metric(f"http://127.0.0.1:{ports[1] + 1000}", "baton_decode_retractions_total") > 0
    for n in lengths:
        ask(n, line_of(n))
        assert "ids" in crowded[n], crowded[n]
        assert crowded[n]["ids"] == got[n]["ids"], f"prompt of {n} tokens"
    wait_until("all pages free or cached", lambda: sum(
        metric(f"http://127.0.0.1:{ports[1] + 1000}", f"baton_kv_pages_{what}") for what in ("free", "cached")) == 4)
    for w in workers:
        assert w.stop() == 0
