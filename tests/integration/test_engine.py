"""The engine through real workers: cached prefixes, tails computed by the decode worker, drafts, log
probabilities. Whatever the engine does to be fast, the text stays the same."""
import json
import math
import re
import signal
import struct
import urllib.request

from conftest import free_port, http_get, json_lines, metric, run_baton, wait_until

EAGLE = ["--speculative-algorithm", "EAGLE"]


def ids_of(n, seed=0, vocab=120000):
    return [(i * 7919 + 13 + seed * 1009) % vocab + 3 for i in range(n)]


PENALISED = {"temperature": 0.8, "top_p": 0.95, "top_k": 400, "seed": 3, "presence_penalty": 0.7,
             "frequency_penalty": 0.3, "repetition_penalty": 1.2, "logit_bias": {"100": 3, "101": -100}}


class Pair:
    """One prefill and one decode worker, asked directly."""

    def __init__(self, process, model, prefill_args=(), decode_args=()):
        self.ports = free_port(), free_port()
        self.workers = [process(role, ["--model-path", model, "--host", "127.0.0.1", "--port", port, *args])
                        for role, port, args in zip(("prefill", "decode"), self.ports, (prefill_args, decode_args))]
        for w, port in zip(self.workers, self.ports):
            wait_until(w.name, lambda port=port: http_get(f"http://127.0.0.1:{port + 1000}/ready")[0] == 200)

    def ask(self, ids, new=24, **kw):
        line = {"ids": ids, "max_new_tokens": new, "temperature": 0, "ignore_eos": True, **kw}
        got = json_lines("generate", [line], "--decode", f"127.0.0.1:{self.ports[1]}",
                         "--prefill", f"127.0.0.1:{self.ports[0]}")[0]
        assert "ids" in got, got
        return got

    def metric(self, who, name):
        return metric(f"http://127.0.0.1:{self.ports[who] + 1000}", name)

    def flush(self):
        for port in self.ports:
            r = urllib.request.Request(f"http://127.0.0.1:{port + 1000}/flush_cache", method="POST")
            assert urllib.request.urlopen(r).status == 200

    def stop(self):
        for w in reversed(self.workers):
            assert w.stop() == 0


def test_a_prompt_seen_before_is_not_computed_again(demo_model, process):
    p = Pair(process, demo_model)
    ids = ids_of(1100)
    cold = p.ask(ids)
    assert cold["stats"].get("cached_tokens", 0) == 0
    warm = p.ask(ids)
    assert warm["ids"] == cold["ids"]
    assert warm["stats"]["cached_tokens"] == 1024 and warm["stats"]["pages_reused"] == 4
    for pool in ("c4", "indexer", "c128"):  # what stays is in pages alone: every slot is free again
        assert p.metric(0, f'baton_kv_pool_used_bytes{{pool="{pool}"}}') > 0
    for pool in ("swa", "c4_state", "c128_state"):
        wait_until("free slots", lambda pool=pool: p.metric(0, f'baton_kv_pool_used_bytes{{pool="{pool}"}}') == 0)
    longer = p.ask(ids + ids_of(300, 5))  # the end of the first prompt is in its middle
    assert longer["stats"]["cached_tokens"] == 1024
    p.flush()
    wait_until("caches empty", lambda: p.metric(0, "baton_kv_pages_cached") == p.metric(1, "baton_kv_pages_cached") == 0)
    assert p.ask(ids + ids_of(300, 5))["ids"] == longer["ids"]
    assert p.metric(0, "baton_prefix_cache_hit_tokens_total") == 2048
    p.stop()


def test_prompts_that_part_leave_a_state_where_they_part(demo_model, process):
    """The third prompt with the same beginning starts where the first two parted."""
    p = Pair(process, demo_model)
    shared = ids_of(800)
    hits = [p.ask(shared + ids_of(500, i), 4)["stats"].get("cached_tokens", 0) for i in range(1, 5)]
    assert hits == [0, 0, 768, 768]
    p.stop()


def test_a_pinned_prompt_stays_while_others_need_the_room(demo_model, process):
    """On both workers: the prefill worker goes on from it, the decode worker has its pages."""
    p = Pair(process, demo_model, *[["--max-total-tokens", 8 * 256, "--prefix-pin-percent", 50]] * 2)
    ids = ids_of(1000)
    first = p.ask(ids, 4, cache_pin_s=600)
    assert [p.metric(who, "baton_kv_pages_pinned") for who in (0, 1)] == [3, 3]
    for i in range(1, 6):
        p.ask(ids_of(700, i), 2, cache_pin_s=600)  # the share is used up: it is computed, not pinned
    again = p.ask(ids, 4)
    assert again["ids"] == first["ids"]
    assert again["stats"]["cached_tokens"] == 768 and again["stats"]["pages_reused"] == 3
    assert p.metric(0, "baton_prefix_cache_pins_total") == 1
    assert p.metric(0, "baton_prefix_cache_pins_refused_total") == 5
    p.ask(ids_of(1700, 9), 2)  # eight pages, all there are: nothing else runs, so pins give way
    assert [p.metric(who, "baton_kv_pages_pinned") for who in (0, 1)] == [0, 0]
    assert p.ask(ids, 4, cache_pin_s=1)["ids"] == first["ids"]
    wait_until("the pin ends", lambda: p.metric(0, "baton_kv_pages_pinned") == p.metric(1, "baton_kv_pages_pinned") == 0)
    (bad,) = json_lines("generate", [{"ids": ids, "cache_pin_s": 4000}], "--decode", f"127.0.0.1:{p.ports[1]}",
                        "--prefill", f"127.0.0.1:{p.ports[0]}")
    assert bad["code"] == "invalid" and "at most 3600" in bad["error"]
    p.stop()


def test_other_tenants_prefixes_are_not_shared(demo_model, process):
    p = Pair(process, demo_model)
    ids = ids_of(600)
    p.ask(ids, 2, cache_salt=1)
    assert p.ask(ids, 2, cache_salt=2)["stats"].get("cached_tokens", 0) == 0
    assert p.ask(ids, 2, cache_salt=1)["stats"]["cached_tokens"] == 512
    p.stop()


def test_a_short_tail_is_computed_by_the_decode_worker(demo_model, process):
    """The second turn: all but its tail is in the decode worker's cache, generated tokens too."""
    plain = Pair(process, demo_model, ["--disable-radix-cache"], ["--disable-radix-cache"])
    local = Pair(process, demo_model, decode_args=["--local-prefill-max-tokens", 400])
    first = ids_of(500)
    turn1 = local.ask(first, 60)
    assert turn1["ids"] == plain.ask(first, 60)["ids"]
    second = first + turn1["ids"] + ids_of(100, 9)
    handoffs = local.metric(0, "baton_prefill_requests_total")
    turn2 = local.ask(second, 30)
    assert turn2["ids"] == plain.ask(second, 30)["ids"]
    assert local.metric(0, "baton_prefill_requests_total") == handoffs
    assert turn2["stats"]["cached_tokens"] == 512
    for p in (plain, local):
        p.stop()


def test_drafts_change_no_token(demo_model, process):
    plain = Pair(process, demo_model)
    drafting = Pair(process, demo_model, EAGLE, [*EAGLE, "--speculative-num-steps", 3])
    for i in range(4):
        ids = ids_of(40 + 300 * i, i)
        penalised = [PENALISED, {**PENALISED, "temperature": 0, "min_new_tokens": 70, "stop_token_ids": ids_of(60)}]
        for kw in ({"temperature": 0}, {"temperature": 0.7, "top_p": 0.9, "seed": i}, *penalised[i:i + 1]):
            assert drafting.ask(ids, 80, **kw)["ids"] == plain.ask(ids, 80, **kw)["ids"]
    assert drafting.metric(1, "baton_speculation_drafted_total") > 100
    for p in (plain, drafting):
        p.stop()


def test_every_step_is_traced(demo_model, process, tmp_path):
    trace = tmp_path / "trace.json"
    p = Pair(process, demo_model, decode_args=["--step-trace", trace])
    decode = p.workers[1]
    p.ask(ids_of(30), 10)
    decode.p.send_signal(signal.SIGUSR1)
    wait_until("end of the trace", lambda: "step trace: complete" in decode.text())
    p.ask(ids_of(30), 7)  # between two traces
    decode.p.send_signal(signal.SIGUSR1)
    wait_until("second trace", lambda: f"{trace}.2, until" in decode.text())
    p.ask(ids_of(30), 5)
    p.stop()
    for path, n in ((trace, 9), (f"{trace}.2", 4)):
        with open(path) as f:
            events = json.load(f)
        steps = [e for e in events if e["name"] == "step"]
        assert len(steps) == n and all(e["args"]["tokens"] == 1 for e in steps)
        assert {"schedule", "forward", "sample"} <= {e["name"] for e in events}


def test_memory_that_cannot_be_had_is_refused_with_the_numbers(demo_model, process):
    for args, why in ((["--max-total-tokens", 1000000000], "lower --max-total-tokens"),
                      (["--kv-cache-bytes", 1000000], "raise --kv-cache-bytes"),
                      (["--mem-fraction-static", 0.0001], "--mem-fraction-static")):
        w = process("decode", ["--model-path", demo_model, "--port", free_port(), *args])
        w.p.wait(60)
        assert w.p.returncode == 1 and why in w.text() and "MiB" in w.text(), w.text()
    w = process("prefill", ["--model-path", demo_model, "--port", free_port(), "--kv-cache-bytes", 200_000_000])
    wait_until("plan", lambda: "all together" in w.text())
    pages, slots, states = (float(x) for x in re.search(
        r"KV pages \d+ x [\d.]+ KiB = ([\d.]+) MiB.* = ([\d.]+) MiB; snapshots .* = ([\d.]+) MiB", w.text()).groups())
    assert 150 < (pages + slots + states) * 1.048576 <= 200


def test_a_resumed_request_draws_what_it_would_have_drawn(demo_model, process):
    """With penalties, masks and log probabilities: all depend on what was output before."""
    p = Pair(process, demo_model)
    ids = ids_of(200)
    for kw in (PENALISED, {**PENALISED, "temperature": 0}, {**PENALISED, "min_new_tokens": 25}):
        whole = p.ask(ids, 40, logprobs=True, **kw)
        assert len(whole["logprobs"]) == 40
        for n in (1, 17, 39):
            rest = p.ask(ids + whole["ids"][:n], 40, n_emitted=n, logprobs=True, **kw)
            assert whole["ids"][:n] + rest["ids"] == whole["ids"]
            assert rest["logprobs"] == whole["logprobs"][n:]
    p.stop()


def test_sampling_parameters_do_what_they_say(demo_model, process):
    p = Pair(process, demo_model)
    ids = ids_of(50)
    assert p.ask(ids, 5, logit_bias={"777": 100})["ids"] == [777] * 5
    assert len(set(p.ask(ids, 40, logit_bias={str(i): 30 for i in range(500, 600)}, frequency_penalty=2,
                         presence_penalty=2)["ids"])) == 40
    plain = p.ask(ids, 12)["ids"]
    assert plain[0] not in p.ask(ids, 12, logit_bias={str(plain[0]): -100})["ids"]
    stopped = p.ask(ids, 12, stop_token_ids=[plain[4]])
    assert stopped["ids"] == plain[:plain.index(plain[4]) + 1] and stopped["finish"] == "stop"
    later = p.ask(ids, 30, stop_token_ids=plain[:6], min_new_tokens=10)["ids"]
    assert len(later) > 10 and not set(later[:10]) & set(plain[:6])
    (bad,) = json_lines("generate", [{"ids": ids, "presence_penalty": 3}], "--decode", f"127.0.0.1:{p.ports[1]}",
                        "--prefill", f"127.0.0.1:{p.ports[0]}")
    assert bad["code"] == "invalid" and "presence_penalty" in bad["error"]
    p.stop()


def log_softmax(row):
    top = max(row)
    total = top + math.log(sum(math.exp(x - top) for x in row))
    return [x - total for x in row]


def rows_of(path, name):
    raw = path.read_bytes()
    n = struct.unpack("<Q", raw[:8])[0]
    t = json.loads(raw[8:8 + n])[name]
    rows, cols = t["shape"]
    data = struct.unpack(f"<{rows * cols}f", raw[8 + n + t["data_offsets"][0]:8 + n + t["data_offsets"][1]])
    return [data[i * cols:(i + 1) * cols] for i in range(rows)]


def test_log_probabilities_are_those_of_the_logits(demo_model, cluster, tmp_path):
    c = cluster()
    r = c.client().completions.create(model="m", prompt=ids_of(300), max_tokens=4, temperature=0, logprobs=3,
                                      echo=True, extra_body={"ignore_eos": True})
    got = r.choices[0].logprobs
    assert len(got.token_logprobs) == 304 and got.token_logprobs[0] is None
    out = tmp_path / "logits"
    tokens = tmp_path / "tokens"
    tokens.write_text(",".join(map(str, ids_of(300))))
    greedy = json.loads(run_baton("logits", "--model-path", demo_model, "--tokens-file", tokens, "--greedy", 4,
                                  "--out", out))["greedy"]
    prompt, drawn = rows_of(out, "logits"), rows_of(out, "greedy_logits")
    for i in (1, 2, 31, 32, 33, 255, 256, 299):
        assert abs(got.token_logprobs[i] - log_softmax(prompt[i - 1])[ids_of(300)[i]]) < 1e-3, i
    for i in range(4):
        want = log_softmax(drawn[i])
        assert abs(got.token_logprobs[300 + i] - want[greedy[i]]) < 1e-3
        assert abs(max(got.top_logprobs[300 + i].values()) - max(want)) < 1e-3
