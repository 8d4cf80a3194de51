"""`baton encode` and `baton parse` against the shared cases, and beyond them."""
import json
import random
import struct

import pytest

from baton_lines import cases, run_lines


def ids(all_cases):
    return [c["id"] for c in all_cases]


ENCODING = cases("encoding_cases.jsonl")
API = cases("api_cases.jsonl")
PARSE = cases("parse_cases.jsonl")


@pytest.fixture(scope="module")
def encoded():
    return dict(zip(ids(ENCODING), run_lines("encode", [{"request": c["request"]} for c in ENCODING])))


@pytest.fixture(scope="module")
def rendered():
    lines = [{"body": c["body"]} for c in API]
    return dict(zip(ids(API), run_lines("encode", lines, "--special-ranges")))


@pytest.mark.parametrize("case", ENCODING, ids=ids(ENCODING))
def test_messages_become_the_reference_prompt(encoded, case):
    found = encoded[case["id"]]
    if case.get("error"):
        assert found["status"] == 400 and found["error"]
    else:
        assert found == {"prompt": case["prompt"]}


@pytest.mark.parametrize("case", API, ids=ids(API))
def test_bodies_become_the_reference_prompt(rendered, case):
    found = rendered[case["id"]]
    if case.get("error"):
        assert found["status"] == case["status"] and found["error"]
    else:
        assert (found["prompt"], found["start"], found["tools"]) == \
            (case["prompt"], case["start"], case["tools"])


def test_only_what_the_renderer_wrote_is_a_special_token(rendered):
    compared = 0
    for case in cases("prompt_token_cases.jsonl"):
        found = rendered.get(case["id"])
        if found is not None and "prompt" in found:
            assert found["prompt"] == case["prompt"]
            assert found["special_ranges"] == case["special_ranges"], case["id"]
            compared += 1
    assert compared == len(cases("prompt_token_cases.jsonl"))


def parse_line(case):
    return {k: v for k, v in case.items() if k not in ("id", "source", "note", "expect")}


def cut(text, rng, sizes):
    pieces, at = [], 0
    while at < len(text):
        n = rng.choice(sizes)
        pieces.append(text[at:at + n])
        at += n
    return pieces


@pytest.mark.parametrize("sizes", [None, [1], [1, 2, 3, 5, 8, 40], [0, 1, 100]])
def test_output_becomes_the_reference_answer_however_it_is_cut(sizes):
    rng = random.Random(7)
    lines = [parse_line(c) for c in PARSE]
    if sizes is not None:
        for line in lines:
            line["chunks"] = cut(line.pop("output"), rng, sizes)
    for case, found in zip(PARSE, run_lines("parse", lines)):
        assert found == case["expect"], case["id"]


def test_json_is_spelled_as_python_spells_it():
    rng = random.Random(1)
    numbers = [struct.unpack("<d", struct.pack("<Q", rng.getrandbits(64)))[0] for _ in range(3000)]
    numbers += [2.0 ** k for k in range(-1074, 1024)] + [10.0 ** k for k in range(-323, 309)]
    numbers += [rng.random() * 10 ** rng.randint(-8, 20) for _ in range(3000)]
    numbers += [5e-324, 0.0, -0.0, 1e22, 123456789012345678901234567890, -1, 2 ** 70]
    schema = {"n": [x for x in numbers if x == x], "s": "".join(map(chr, range(0x3000))),
              "nested": [[], {}, [[{"a": [None, True, False]}]]]}
    tool = {"type": "function", "function": schema}
    request = {"messages": [{"role": "user", "content": "x"}], "tools": [tool], "thinking_mode": "chat"}
    answer, = run_lines("encode", [{"request": request}])
    assert json.dumps(schema, ensure_ascii=False) in answer["prompt"]


def test_bad_lines_are_answered_and_the_rest_goes_on():
    good = {"request": {"messages": [{"role": "user", "content": "x"}], "thinking_mode": "chat"}}
    lines = ["{", "[]", "5", b'{"request": "\xff"}', {"request": 5}, {"body": []}, {}, good,
             {"request": {}, "body": {}}, r'{"body": {"messages": [{"role": "user", "content": "\ud800"}]}}',
             dict(good, profile="v3"), good]
    answers = run_lines("encode", lines)
    for line, answer in zip(lines, answers):
        if line is good:
            assert answer["prompt"].endswith("x<｜Assistant｜></think>")
        else:
            assert answer["status"] == 400 and answer["error"], line
    for answer in run_lines("parse", ["{", "[]", {}, {"output": 5}, {"chunks": [1]},
                                      {"output": "x", "start": "middle"},
                                      {"output": "x", "thinking_mode": "maybe"}]):
        assert answer["error"]


def test_depth_is_no_limit():
    deep = "[" * 100000 + "]" * 100000
    tool = '{"type": "function", "function": {"name": "f", "parameters": {"d": %s}}}' % deep
    body = '{"body": {"messages": [{"role": "user", "content": "x"}], "tools": [%s]}}' % tool
    answer, = run_lines("encode", [body])
    assert deep in answer["prompt"]


# What a generated turn parses to renders back to the bytes that were generated, so that the prefix
# cache hits on the next turn.
TEXTS = ["", "x", "Sure.\n", "\n\n", "a < b <", " <｜User｜> ", "中文 🦉\r\n", "</tool_result>", "｜DSML｜"]
VALUES = ["", "x", "line\nline\n", '"quoted" \\ back', "<b>&amp;</b>", "中🦉", "{\"a\": 1}", "</｜DSM"]


def random_turn(rng):
    """One well-formed turn: the generated text and whether it thinks."""
    thinking = rng.random() < 0.5
    text = rng.choice(TEXTS) + "r</think>" if thinking else ""
    content = "".join(rng.choice(TEXTS) for _ in range(rng.randint(0, 3)))
    calls = []
    for _ in range(rng.randint(0, 3)):
        params = []
        for key in rng.sample(["a", "key two", "中", "", 'q"'], rng.randint(0, 4)):
            if '"' in key:
                continue
            if rng.random() < 0.5:
                params.append(f'<｜DSML｜parameter name="{key}" string="true">{rng.choice(VALUES)}'
                              '</｜DSML｜parameter>')
            else:
                value = json.dumps(rng.choice([1, -2.5, 1e-7, None, True, [], {}, [1, {"x": "é"}]]),
                                   ensure_ascii=False)
                params.append(f'<｜DSML｜parameter name="{key}" string="false">{value}</｜DSML｜parameter>')
        calls.append(f'<｜DSML｜invoke name="f{len(calls)}">\n' + "\n".join(params) + "\n</｜DSML｜invoke>")
    if not calls and not content:
        content = "ok"
    text += content
    if calls:
        text += "\n\n<｜DSML｜tool_calls>\n" + "\n".join(calls) + "\n</｜DSML｜tool_calls>"
    return text, thinking


def test_a_parsed_turn_renders_to_the_generated_bytes():
    rng = random.Random(3)
    turns = [random_turn(rng) for _ in range(400)]
    parsed = run_lines("parse", [{"thinking_mode": "thinking" if thinking else "chat", "output": text}
                                 for text, thinking in turns])
    lines = []
    for (_, thinking), answer in zip(turns, parsed):
        calls = [{"id": f"c{i}", "type": "function", "function": c}
                 for i, c in enumerate(answer["tool_calls"])]
        message = {"role": "assistant", "content": answer["content"],
                   "reasoning_content": answer["reasoning_content"]}
        if calls:
            message["tool_calls"] = calls
        results = [{"role": "tool", "tool_call_id": c["id"], "content": "r"} for c in calls]
        lines.append({"body": {
            "messages": [{"role": "user", "content": "q"}, message, *results],
            "tools": [{"type": "function", "function": {"name": "f0"}}],
            "thinking": {"type": "enabled" if thinking else "disabled"}}})
    for (text, thinking), answer in zip(turns, run_lines("encode", lines)):
        opener = "<｜Assistant｜>" + ("<think>" if thinking else "</think>")
        assert opener + text + "<｜end▁of▁sentence｜>" in answer["prompt"]
