"""`baton tokenize` and `baton detokenize` against the shared cases."""
import gzip
import json
import os
import pathlib
import subprocess

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
BUILD = pathlib.Path(os.environ.get("BATON_BUILD", ROOT / "build"))
DATA = ROOT / "tests/data/text"


def cases(name):
    with open(DATA / name, encoding="utf-8", newline="\n") as f:
        return [json.loads(line) for line in f.read().split("\n") if line]


@pytest.fixture(scope="session")
def tokenizer_dir(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer")
    (path / "tokenizer.json").write_bytes(gzip.decompress((DATA / "tokenizer.json.gz").read_bytes()))
    return path


def run_lines(command, tokenizer_path, lines, ascii_only=False):
    """Each line is a str (sent as it is), bytes, or an object."""
    raw = b"".join(
        (x if isinstance(x, bytes) else x.encode() if isinstance(x, str)
         else json.dumps(x, ensure_ascii=ascii_only).encode()) + b"\n"
        for x in lines
    )
    done = subprocess.run(
        [BUILD / "deploy/baton/baton", command, "--tokenizer-path", tokenizer_path],
        input=raw, capture_output=True, timeout=120,
    )
    assert done.returncode == 0, done.stderr.decode()
    answers = [json.loads(line) for line in done.stdout.decode("utf-8").split("\n") if line]
    assert len(answers) == len(lines)
    return answers


def assert_same(found, expected, what):
    wrong = [i for i, (a, b) in enumerate(zip(found, expected)) if a != b]
    assert not wrong, f"{len(wrong)} of {len(expected)} differ; first: {what[wrong[0]]!r}: " \
                      f"found {found[wrong[0]]!r}, expected {expected[wrong[0]]!r}"


@pytest.mark.parametrize("ascii_only", [False, True])
def test_text_becomes_the_reference_ids(tokenizer_dir, ascii_only):
    all_cases = cases("tokenizer_cases.jsonl")
    found = run_lines("tokenize", tokenizer_dir, [{"text": c["text"]} for c in all_cases], ascii_only)
    assert_same(found, [{"ids": c["ids"]} for c in all_cases], all_cases)


def test_ids_become_the_text_again(tokenizer_dir):
    all_cases = cases("tokenizer_cases.jsonl")
    found = run_lines("detokenize", tokenizer_dir, [{"ids": c["ids"]} for c in all_cases])
    assert_same(["".join(f["pieces"]) + f["tail"] for f in found], [c["text"] for c in all_cases],
                all_cases)


def test_plain_text_has_no_added_tokens(tokenizer_dir):
    all_cases = cases("tokenizer_plain_cases.jsonl")
    found = run_lines("tokenize", tokenizer_dir,
                      [{"text": c["text"], "plain": True} for c in all_cases])
    assert_same(found, [{"ids": c["ids"]} for c in all_cases], all_cases)
    found = run_lines("tokenize", tokenizer_dir,
                      [{"text": c["text"], "plain": False} for c in all_cases])
    assert_same(found, [{"ids": c["ids_with_added"]} for c in all_cases], all_cases)


def test_prompts_have_special_tokens_only_where_the_renderer_wrote_them(tokenizer_dir):
    all_cases = cases("prompt_token_cases.jsonl")
    found = run_lines("tokenize", tokenizer_dir,
                      [{k: c[k] for k in ("prompt", "special_ranges")} for c in all_cases])
    assert_same(found, [{"ids": c["ids"]} for c in all_cases], all_cases)


def test_streams_show_each_character_when_it_is_decided(tokenizer_dir):
    all_cases = cases("tokenizer_streaming_cases.jsonl")
    found = run_lines("detokenize", tokenizer_dir, [{"ids": c["ids"]} for c in all_cases])
    assert_same(found, [{k: c[k] for k in ("pieces", "tail")} for c in all_cases], all_cases)


def test_the_path_may_name_the_file(tokenizer_dir):
    assert run_lines("tokenize", tokenizer_dir / "tokenizer.json", [{"text": "<think>"}]) == \
        [{"ids": [128821]}]


BAD_TOKENIZE = [
    ("{", "JSON"),
    (b'{"text": "\xff"}', "UTF-8"),
    ('{"text": "\\ud800"}', "surrogate"),
    ("[]", "text"),
    ({"text": 1}, "text"),
    ({}, "text"),
    ({"text": "a", "plain": 1}, "plain"),
    ({"text": "a", "prompt": "b", "special_ranges": []}, "text"),
    ({"prompt": "abc"}, "special_ranges"),
    ({"prompt": "abc", "special_ranges": {}}, "special_ranges"),
    ({"prompt": "abc", "special_ranges": [[0]]}, "special_ranges[0]"),
    ({"prompt": "abc", "special_ranges": [[0, 4]]}, "special_ranges[0]"),
    ({"prompt": "abc", "special_ranges": [[2, 1]]}, "special_ranges[0]"),
    ({"prompt": "abc", "special_ranges": [[-1, 1]]}, "special_ranges[0]"),
    ({"prompt": "<think><think>", "special_ranges": [[0, 7], [6, 14]]}, "special_ranges[1]"),
    ({"prompt": "abc", "special_ranges": [[0, 3]]}, "no added token"),
    ({"prompt": "\u00e9<think>", "special_ranges": [[1, 9]]}, ""),
]


def test_a_bad_line_gets_its_reason_and_the_next_its_answer(tokenizer_dir):
    lines = [x for line, _ in BAD_TOKENIZE for x in (line, {"text": "hi"})]
    found = run_lines("tokenize", tokenizer_dir, lines)
    for (line, reason), answer in zip(BAD_TOKENIZE, found[::2]):
        assert "ids" not in answer and reason in answer["error"], (line, answer)
    assert found[1::2] == [{"ids": [6366]}] * len(BAD_TOKENIZE)


def test_bad_ids_get_their_reason(tokenizer_dir):
    bad = [{"ids": 1}, {}, {"ids": [129280]}, {"ids": [5, -1]}, {"ids": [1.5]}, {"ids": ["1"]},
           {"ids": [2 ** 63]}]
    found = run_lines("detokenize", tokenizer_dir, bad + [{"ids": []}, {"ids": [6366]}])
    assert all("pieces" not in a and "ids" in a["error"] for a in found[:-2])
    assert found[-2:] == [{"pieces": [], "tail": ""}, {"pieces": ["hi"], "tail": ""}]


@pytest.mark.parametrize("args, reason", [
    ([], "--tokenizer-path"),
    (["--tokenizer-path", "/nowhere"], "/nowhere"),
    (["--tokenizer-path", "/dev/null"], "/dev/null"),
])
def test_a_bad_path_is_named(args, reason):
    done = subprocess.run([BUILD / "deploy/baton/baton", "tokenize", *args], input=b"",
                          capture_output=True, timeout=60)
    assert done.returncode != 0 and reason in done.stderr.decode()
