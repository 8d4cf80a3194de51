"""The model against the oracle's golden vectors, through `baton logits` and the golden layer test.

The reference level must give every bit (logits within 1e-5), at any chunk size; the fast levels stay within
the limits of vectors/INDEX.json. The normal run takes the sizes that fit into about three minutes on two cores;
BATON_TEST_FULL=1 (tests/run --full) takes all. `../shared` beside the source, when it is there, adds the vectors
that are too large for the repository.
"""
import hashlib
import json
import os
import subprocess

import numpy as np
import pytest

from conftest import BUILD, ROOT, SANITIZE, run_baton
from golden import check_rows, read_safetensors

FULL = os.environ.get("BATON_TEST_FULL") == "1"
HERE = ROOT / "tests/oracle/vectors"
SHARED = ROOT.parent / "shared/oracle/vectors"
CONFIGS = ("tiny", "flashlike", "prolike")
LENGTHS = (1, 5, 127, 128, 129, 300, 1100)
FAST = ("avx2", "avx512")


def vectors(config, kind):
    for folder in (HERE, SHARED):
        path = folder / config / f"{kind}.safetensors"
        if path.exists():
            return path
    pytest.skip(f"{config}/{kind}.safetensors is not in this checkout")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """checkpoint(config, experts='fp4') -> directory, made once."""
    made = {}

    def make(config, experts="fp4"):
        if (config, experts) not in made:
            path = tmp_path_factory.mktemp("checkpoint") / f"{config}-{experts}"
            run_baton("demo-checkpoint", path, "--config", config, "--experts", experts)
            made[config, experts] = path
        return made[config, experts]

    return make


def logits(tmp_path, model, tokens, isa, chunk=0, greedy=0, tp=1):
    out = tmp_path / "out.safetensors"
    r = run_baton("logits", "--model-path", model, "--tokens", ",".join(map(str, tokens)), "--cpu-isa", isa,
                  "--chunk-size", chunk, "--greedy", greedy, "--tp-size", tp, "--out", out, check=False, timeout=3000)
    if r.returncode != 0 and "this processor" in r.stderr:
        pytest.skip(r.stderr.strip())
    assert r.returncode == 0, r.stderr
    return read_safetensors(out)


def test_checkpoints_are_those_of_the_oracle_byte_for_byte(checkpoint):
    index = json.loads((HERE / "INDEX.json").read_text())
    for c in index["checkpoints"]:
        folder = checkpoint(c["config"], c["experts"])
        for file, digest in c["sha256"].items():
            assert hashlib.sha256((folder / file).read_bytes()).hexdigest() == digest, (c["experts"], file)


def ref_cases():
    """(config, length, chunk): all of them, or those that are quick."""
    for config in CONFIGS:
        for length in LENGTHS:
            for chunk in (0, 1, 100, 128, 256):
                quick = length <= 5 and chunk == 0 or length == 129 and chunk in (0, 100) or \
                    config == "tiny" and (length < 300 or length == 300 and chunk in (1, 256))
                quick = quick and not (SANITIZE and length > 129)
                if (FULL or quick) and chunk < max(length, 2):
                    yield config, length, chunk


@pytest.mark.parametrize("config,length,chunk", list(ref_cases()))
def test_the_reference_gives_every_bit(tmp_path, checkpoint, config, length, chunk):
    g = read_safetensors(vectors(config, "prompts"))
    got = logits(tmp_path, checkpoint(config), g[f"tokens.{length}"], "ref", chunk, greedy=16)
    what = f"{config}, {length} tokens, chunks of {chunk}"
    check_rows(got["logits"][g[f"positions.{length}"]], g[f"logits.{length}"], None, True, what)
    check_rows(got["greedy_logits"], g[f"greedy_logits.{length}"], None, True, what + ", greedy")
    check_rows(got["mtp_logits"][g[f"mtp_positions.{length}"]], g[f"mtp_logits.{length}"], None, True, what + ", MTP")
    assert (got["greedy"] == g[f"greedy.{length}"]).all()


@pytest.mark.parametrize("tp", (2, 4))
@pytest.mark.parametrize("config", CONFIGS)
def test_several_ranks_give_every_bit_of_the_reference(tmp_path, checkpoint, config, tp):
    g = read_safetensors(vectors(config, "prompts"))
    quick = ((5, 0), (129, 100)) if config == "tiny" else ((5, 0),)
    for length, chunk in quick if not FULL else ((5, 0), (129, 100), (300, 0), (1100, 256)):
        got = logits(tmp_path, checkpoint(config), g[f"tokens.{length}"], "ref", chunk, greedy=16, tp=tp)
        what = f"{config}, {length} tokens, {tp} ranks"
        check_rows(got["logits"][g[f"positions.{length}"]], g[f"logits.{length}"], None, True, what)
        check_rows(got["greedy_logits"], g[f"greedy_logits.{length}"], None, True, what + ", greedy")
        check_rows(got["mtp_logits"][g[f"mtp_positions.{length}"]], g[f"mtp_logits.{length}"], None, True, what)
        assert (got["greedy"] == g[f"greedy.{length}"]).all()


@pytest.mark.parametrize("isa", FAST)
@pytest.mark.parametrize("config", CONFIGS)
def test_several_ranks_give_the_bits_of_one(tmp_path, checkpoint, config, isa):
    g = read_safetensors(vectors(config, "prompts"))
    ranks = {tp: logits(tmp_path, checkpoint(config), g["tokens.129"], isa, 100, greedy=8, tp=tp)
             for tp in (1, 2, 3, 4)}
    for tp, got in ranks.items():
        for name, rows in ranks[1].items():
            assert got[name].tobytes() == rows.tobytes(), f"{config} {isa}: {name} of {tp} ranks"


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("experts,golden", [("fp4", "fp4"), ("fp8-converted", "fp4"), ("fp8", "fp8")])
def test_fp4_and_fp8_experts(tmp_path, checkpoint, config, experts, golden):
    g = read_safetensors(vectors(config, "prompts"))
    got = logits(tmp_path, checkpoint(config, experts), g["tokens.variants"], "ref")
    check_rows(got["logits"][-4:], g[f"logits.variants.{golden}"], None, True, f"{config} {experts}")


@pytest.mark.parametrize("isa", FAST)
@pytest.mark.parametrize("config", CONFIGS)
def test_fast_levels_stay_within_the_noise(tmp_path, checkpoint, config, isa):
    g = read_safetensors(vectors(config, "prompts"))
    for length in LENGTHS:
        # The golden tokens are fed, so that every row has the golden past.
        fed = np.concatenate([g[f"tokens.{length}"], g[f"greedy.{length}"]])
        got = logits(tmp_path, checkpoint(config), fed, isa)
        what = f"{config}, {length} tokens, {isa}"
        check_rows(got["logits"][g[f"positions.{length}"]], g[f"logits.{length}"], g[f"noise.{length}"], False, what)
        greedy = got["logits"][length - 1:length + 15]
        check_rows(greedy, g[f"greedy_logits.{length}"], g[f"greedy_noise.{length}"], False, what + ", greedy")
        check_rows(got["mtp_logits"][g[f"mtp_positions.{length}"]], g[f"mtp_logits.{length}"],
                   g[f"mtp_noise.{length}"], False, what + ", MTP")
        clear = g[f"greedy_margin.{length}"] > 5 * g[f"greedy_noise.{length}"]
        assert (greedy.argmax(-1) == g[f"greedy.{length}"])[clear].all(), what


@pytest.mark.parametrize("isa", ("ref", *FAST))
def test_bits_do_not_depend_on_chunks_or_threads(tmp_path, checkpoint, isa):
    g = read_safetensors(vectors("tiny", "prompts"))
    tokens = g["tokens.300"]
    whole = logits(tmp_path, checkpoint("tiny"), tokens, isa, greedy=8)
    for chunk in (7, 100) if isa == "ref" and not FULL else (1, 7, 100, 128, 256):
        part = logits(tmp_path, checkpoint("tiny"), tokens, isa, chunk, greedy=8)
        for name in ("logits", "mtp_logits", "greedy_logits", "greedy"):
            assert part[name].tobytes() == whole[name].tobytes(), f"{name}, chunks of {chunk}"
    out = tmp_path / "one.safetensors"
    run_baton("logits", "--model-path", checkpoint("tiny"), "--tokens", ",".join(map(str, tokens)), "--cpu-isa",
              isa, "--threads", 1, "--out", out)
    assert read_safetensors(out)["logits"].tobytes() == whole["logits"].tobytes()
    run_baton("logits", "--model-path", checkpoint("tiny"), "--tokens", ",".join(map(str, tokens)), "--cpu-isa",
              isa, "--no-repack", "--out", out)
    assert read_safetensors(out)["logits"].tobytes() == whole["logits"].tobytes(), "weights as mapped"


@pytest.mark.parametrize("config,isa", [(c, i) for c in CONFIGS for i in ("ref", *FAST)])
def test_layers_and_states(checkpoint, config, isa):
    """Golden streams into each layer, golden streams out; the state that a prompt leaves; the MTP block."""
    if config != "tiny" and not FULL:
        pytest.skip("the normal run takes tiny; tests/run --full all")
    r = subprocess.run([str(BUILD / "tests/unit/common/model/test_golden_layers"), str(checkpoint(config)),
                        str(vectors(config, "layers").parent), isa], capture_output=True, text=True, timeout=3000)
    if r.returncode != 0 and "this processor" in r.stderr:
        pytest.skip(r.stderr.strip())
    assert r.returncode == 0, r.stdout[-2000:] + r.stderr[-2000:]
