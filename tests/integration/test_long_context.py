"""A context of a million tokens through both workers, within the memory that was planned.

The model is as small as the architecture allows, one layer of each kind, so that what is long is the
context: pages, block tables, indexer and top-k. 65,536 tokens by default, 1,048,000 with --full."""
import json
import os
import re
import subprocess
import sys

import pytest

from conftest import ROOT, run_baton
from test_engine import Pair

FULL = os.environ.get("BATON_TEST_FULL") is not None
LENGTH, CONTEXT = (1_048_000, 1_048_576) if FULL else (65_300, 65_536)
# The binary, its libraries, gRPC and the text of the prompt itself.
PROCESS_BYTES = 128 << 20


@pytest.fixture(scope="module")
def long_model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("long")
    subprocess.run([sys.executable, ROOT / "tests/oracle/make_checkpoint.py", folder / "model", "--config", "slim"],
                   check=True, stdout=subprocess.DEVNULL)
    return folder / "model"


def planned_bytes(worker):
    """Everything the memory plan in the log counts."""
    return float(re.search(r"memory: pools in MiB: .*all together ([\d.]+) MiB", worker.text()).group(1)) * (1 << 20)


def ask(p, ids):
    """Pair.ask() with more time: a million tokens take many minutes."""
    line = json.dumps({"ids": ids, "max_new_tokens": 20, "temperature": 0, "ignore_eos": True}) + "\n"
    return json.loads(run_baton("generate", "--decode", f"127.0.0.1:{p.ports[1]}", "--prefill",
                                f"127.0.0.1:{p.ports[0]}", input=line, timeout=6000 if FULL else 300))


def peak_bytes(worker):
    with open(f"/proc/{worker.p.pid}/status") as f:
        return int(re.search(r"VmHWM:\s+(\d+) kB", f.read()).group(1)) << 10


@pytest.mark.timeout(12000 if FULL else 600)
def test_a_whole_context_stays_within_the_plan(long_model, process):
    args = ["--max-total-tokens", CONTEXT, "--context-length", CONTEXT, "--max-running-requests", 2,
            "--chunked-prefill-size", 4096]
    p = Pair(process, long_model, args, args)
    ids = [(i * 7919 + i // 500 + 13) % 500 + 3 for i in range(LENGTH)]
    cold = ask(p, ids)
    assert len(cold["ids"]) == 20, cold
    warm = ask(p, ids)
    assert warm["ids"] == cold["ids"], "what was cached is not what was computed"
    assert warm["stats"]["cached_tokens"] >= LENGTH - 2 * 4096
    for w in p.workers:
        print(f"{w.name}: peak {peak_bytes(w) / 2**20:.0f} MiB, planned {planned_bytes(w) / 2**20:.0f} MiB")
        assert peak_bytes(w) <= planned_bytes(w) + PROCESS_BYTES
    p.stop()
