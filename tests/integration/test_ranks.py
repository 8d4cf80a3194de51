"""--tp-size: workers of several ranks give the tokens of one, whatever the other side has; and a rank that stops
takes its worker down with a reason."""
import time

import pytest

from conftest import SLOW, free_port, http_get, json_lines, run_baton, wait_until
from test_handoff import NEW, check_all, ids_of_length


@pytest.fixture(scope="module")
def wide_model(tmp_path_factory, tokenizer_json):
    """A checkpoint whose heads, groups, experts and vocabulary divide by 2 and by 4."""
    path = tmp_path_factory.mktemp("model") / "wide"
    run_baton("demo-checkpoint", path, "--config", "flashlike")
    return path


def start_pair(process, model, prefill_tp, decode_tp, *args):
    ports = free_port(), free_port()
    workers = [process(role, ["--model-path", model, "--host", "127.0.0.1", "--port", port, "--tp-size", tp, *args])
               for role, port, tp in zip(("prefill", "decode"), ports, (prefill_tp, decode_tp))]
    for w, port in zip(workers, ports):
        wait_until(w.name, lambda port=port: http_get(f"http://127.0.0.1:{port + 1000}/ready")[0] == 200)
    return workers, ports


@pytest.mark.parametrize("prefill_tp,decode_tp", [(2, 2), (4, 2), (1, 4)])
def test_prefill_and_decode_of_any_sizes_give_the_tokens_of_one_rank(demo_model, tmp_path, process, prefill_tp,
                                                                     decode_tp):
    workers, ports = start_pair(process, demo_model, prefill_tp, decode_tp, "--kv-transport", "shm")
    for w, tp in zip(workers, (prefill_tp, decode_tp)):
        assert (f"memory: rank {tp - 1} of {tp}: weights" in w.text()) == (tp > 1), w.text()
    check_all(demo_model, f"127.0.0.1:{ports[1]}", f"127.0.0.1:{ports[0]}", tmp_path, "shm")
    for w in workers:
        assert w.stop() == 0


def ask(ports, **kw):
    line = {"ids": ids_of_length(300, 1000), "max_new_tokens": NEW, "temperature": 0.9, "seed": 5, "ignore_eos": True}
    return json_lines("generate", [{**line, **kw}], "--decode", f"127.0.0.1:{ports[1]}",
                      "--prefill", f"127.0.0.1:{ports[0]}")[0]


def test_cut_heads_and_speculation_give_the_tokens_of_one_rank(wide_model, process):
    got = {}
    for sizes in ((1, 1), (4, 2), (2, 4)):
        workers, ports = start_pair(process, wide_model, *sizes, "--speculative-algorithm", "EAGLE")
        got[sizes] = ask(ports)["ids"]
        for w, tp in zip(workers, sizes):
            assert ("attention heads, attention output" in w.text()) == (tp > 1), w.text()
            assert w.stop() == 0
    assert got[4, 2] == got[1, 1] and got[2, 4] == got[1, 1]


def test_a_rank_that_stops_ends_its_worker_with_a_reason(demo_model, process):
    ports = free_port(), free_port()
    base = ["--model-path", demo_model, "--host", "127.0.0.1", "--tp-size", 2]
    prefill = process("prefill", [*base, "--port", ports[0]])
    decode = process("decode", [*base, "--port", ports[1], "--inject-stall-rank", 1])
    for w, port in zip((prefill, decode), ports):
        wait_until(w.name, lambda port=port: http_get(f"http://127.0.0.1:{port + 1000}/ready")[0] == 200)
    begin = time.monotonic()
    r = run_baton("generate", "--decode", f"127.0.0.1:{ports[1]}", "--prefill", f"127.0.0.1:{ports[0]}", check=False,
                  input='{"ids": [5, 6, 7, 8], "max_new_tokens": 8, "temperature": 0, "ignore_eos": true}\n')
    assert r.returncode != 0 or "error" in r.stdout, r.stdout
    wait_until("the end of the worker", lambda: not decode.alive(), 15)
    assert "rank 1 hangs: rank 0 waits for it" in decode.text() and "the worker ends" in decode.text()
    assert time.monotonic() - begin < 60 * SLOW  # a bound against waiting for ever, not a measurement
    assert prefill.alive() and prefill.stop() == 0


def test_a_size_out_of_bounds_is_refused(demo_model, process):
    w = process("decode", ["--model-path", demo_model, "--port", free_port(), "--tp-size", 65])
    wait_until("the refusal", lambda: not w.alive())
    assert w.p.returncode != 0 and "tp-size" in w.text()
