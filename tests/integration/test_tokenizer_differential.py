"""Random strings: `baton tokenize` and `baton detokenize` against Hugging Face's tokenizers.

BATON_DIFFERENTIAL_COUNT (default 5000) strings of seed BATON_DIFFERENTIAL_SEED (default 1).
"""
import codecs
import gzip
import json
import os
import pathlib
import random
import subprocess

import pytest

try:
    import tokenizers
except ImportError:
    tokenizers = None

pytestmark = pytest.mark.skipif(
    tokenizers is None, reason="the Python package `tokenizers` is not installed")

ROOT = pathlib.Path(__file__).resolve().parents[2]
BUILD = pathlib.Path(os.environ.get("BATON_BUILD", ROOT / "build"))
DATA = ROOT / "tests/data/text"
COUNT = int(os.environ.get("BATON_DIFFERENTIAL_COUNT", "5000"))
SEED = int(os.environ.get("BATON_DIFFERENTIAL_SEED", "1"))
BATCH = 2000


def baton(command, tokenizer_path, lines):
    raw = "".join(json.dumps(x) + "\n" for x in lines).encode()
    done = subprocess.run(
        [BUILD / "deploy/baton/baton", command, "--tokenizer-path", tokenizer_path],
        input=raw, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr.decode()
    answers = [json.loads(x) for x in done.stdout.decode().split("\n") if x]
    assert len(answers) == len(lines)
    return answers


class Strings:
    """Endless strings that look for trouble: every maker below is a kind of trouble."""

    def __init__(self, seed, added, texts):
        self.r = random.Random(seed)
        self.added = added
        self.texts = texts
        self.makers = [self.any_scripts, self.one_block, self.blanks, self.numbers, self.cjk,
                       self.ascii, self.look_alikes, self.mutated, self.repeats, self.controls,
                       self.joined]

    def make(self):
        return self.r.choice(self.makers)()

    def n(self, most=40):
        return int(self.r.random() ** 2 * most) + 1

    def point(self, first=0, last=0x10FFFF):
        while True:
            cp = self.r.randint(first, last)
            if not 0xD800 <= cp <= 0xDFFF:
                return chr(cp)

    def any_scripts(self):
        planes = [(0, 0x7F), (0x80, 0x7FF), (0x800, 0xFFFF), (0x10000, 0x1FFFF), (0, 0x10FFFF)]
        return "".join(self.point(*self.r.choice(planes)) for _ in range(self.n()))

    def one_block(self):
        start = self.r.choice([c for c in range(0, 0x30000, 128) if not 0xD800 <= c <= 0xDFFF])
        parts = [self.point(start, start + 127) if self.r.random() < 0.8
                 else self.r.choice(" \n\t.,'-aZ0一ア") for _ in range(self.n(60))]
        return "".join(parts)

    def blanks(self):
        pool = " \t\n\r\x0b\x0c\x85\xa0\u1680\u2000\u2003\u2028\u2029\u202f\u205f\u3000\u200b\ufeff"
        pool += " " * 20 + "\n\r" * 4 + "a.1中"
        return "".join(self.r.choice(pool) * self.r.choice([1, 1, 1, 2, 3, 9])
                       for _ in range(self.n()))

    def numbers(self):
        pool = "0123456789" * 3 + "٠١٢३४५²³¹½⅓ⅣⅫ一二〇㉈①𝟘𝟙೦๓" + " .,-+eExX_%$aé"
        return "".join(self.r.choice(pool) for _ in range(self.n(50)))

    def cjk(self):
        out = []
        for _ in range(self.n(30)):
            kind = self.r.random()
            if kind < 0.45:
                out.append(self.point(0x4E00, 0x9FFF))
            elif kind < 0.7:
                out.append(self.point(0x3040, 0x30FF))
            elif kind < 0.8:
                out.append(self.point(0x3000, 0x303F))
            elif kind < 0.9:
                out.append(self.r.choice("，。、！？：；「」『』（）…—～・ー゛゜\u3099\u309a\u3040\u3097ｱｲ"))
            else:
                out.append(self.r.choice([" ", "\n", "a", "Z9", "é", "한", "\u0301", "𠀀", "\x00"]))
        return "".join(out)

    def ascii(self):
        words = ["the", "The", "HELLO", "don't", "it's", "foo_bar", "x", "I'll", "'S", "http://", "/usr",
                 "C++", "e.g.", "==", "->", "();", "\n\n", "\r\n", "  ", "\t", "    ", "###", "...", "'re"]
        return "".join(self.r.choice(words) + self.r.choice(["", " ", " ", ".", ",", "'"])
                       for _ in range(self.n(30)))

    def look_alikes(self):
        out = []
        for _ in range(self.n(8)):
            t = self.r.choice(self.added)
            kind = self.r.random()
            if kind < 0.4:
                out.append(t)
            elif kind < 0.6:
                out.append(t[:self.r.randint(0, len(t))])
            elif kind < 0.75:
                out.append(t[self.r.randint(0, len(t)):])
            elif kind < 0.85:
                i = self.r.randrange(len(t))
                out.append(t[:i] + self.r.choice(["", "x", "｜", "<", "|", "▁", " "]) + t[i + 1:])
            else:
                out.append(self.r.choice(["<", "｜", "|", "</", "<｜", "｜>", "<|", "DSML", ">", " ", "\n",
                                          "think", "text", "1"]))
        return "".join(out)

    def mutated(self):
        t = list(self.r.choice(self.texts)[:200])
        for _ in range(self.n(6)):
            i = self.r.randint(0, len(t))
            kind = self.r.random()
            if kind < 0.4:
                t.insert(i, self.point())
            elif kind < 0.7 and t:
                del t[i % len(t)]
            elif t:
                t[i % len(t)] = self.r.choice(" \n.a1一é\u0301｜<'_")
        return "".join(t)

    def repeats(self):
        unit = self.r.choice([self.ascii, self.cjk, self.any_scripts])()[:self.r.randint(1, 4)]
        return unit * self.r.randint(1, 80)

    def controls(self):
        pool = [chr(c) for c in range(0x20)] + ["\x7f", "\x80", "\x9f", "\xad", "\u200d", "\u200e", "\u2060",
                "\ufeff", "\ufffe", "\uffff", "\ufdd0", "\ufdef", "\U0001fffe", "\U0010ffff", "\ue000",
                "\U000f0000", "\u0378", "\U000e0001", "a", "B", " ", ".", "\u0301", "\n", "7"]
        return "".join(self.r.choice(pool) for _ in range(self.n()))

    def joined(self):
        return self.make() + self.r.choice(["", " ", "\n"]) + self.make()


def expected_pieces(ids, bytes_of, added):
    """What a stream shows after each id: Python's own incremental decoder."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    pieces = []
    for i in ids:
        piece = ""
        if i in added:
            piece = decoder.decode(b"", final=True)
            decoder.reset()
        pieces.append(piece + decoder.decode(bytes_of[i]))
    return {"pieces": pieces, "tail": decoder.decode(b"", final=True)}


@pytest.fixture(scope="module")
def setup(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer")
    text = gzip.decompress((DATA / "tokenizer.json.gz").read_bytes()).decode()
    (path / "tokenizer.json").write_text(text, encoding="utf-8")
    spec = json.loads(text)
    plain = dict(spec, added_tokens=[])
    with open(DATA / "tokenizer_cases.jsonl", encoding="utf-8", newline="\n") as f:
        texts = [json.loads(x)["text"] for x in f.read().split("\n") if x]
    return {
        "path": path,
        "hf": tokenizers.Tokenizer.from_str(text),
        "hf_plain": tokenizers.Tokenizer.from_str(json.dumps(plain)),
        "strings": Strings(SEED, [t["content"] for t in spec["added_tokens"]], texts),
        "bytes_of": token_bytes(spec),
        "added": {t["id"] for t in spec["added_tokens"]},
    }


def token_bytes(spec):
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    to_byte = {chr(b): b for b in printable}
    to_byte |= {chr(0x100 + i): b for i, b in enumerate(b for b in range(256) if b not in printable)}
    out = {i: bytes(to_byte.get(c, 0) for c in s) for s, i in spec["model"]["vocab"].items()}
    out |= {t["id"]: t["content"].encode() for t in spec["added_tokens"]}
    return out


def compare(found, expected, inputs, what):
    for f, e, text in zip(found, expected, inputs):
        assert f == e, f"{what}: seed {SEED}, input {text!r}: found {f}, expected {e}"


def test_random_strings_have_the_reference_ids(setup):
    for start in range(0, COUNT, BATCH):
        texts = [setup["strings"].make() for _ in range(min(BATCH, COUNT - start))]
        for plain, hf in ((False, setup["hf"]), (True, setup["hf_plain"])):
            found = baton("tokenize", setup["path"], [{"text": t, "plain": plain} for t in texts])
            expected = [{"ids": e.ids} for e in hf.encode_batch(texts, add_special_tokens=False)]
            compare(found, expected, texts, f"plain={plain}")
        ids = [e["ids"] for e in expected]
        found = baton("detokenize", setup["path"], [{"ids": i} for i in ids])
        compare(["".join(f["pieces"]) + f["tail"] for f in found], texts, ids, "round trip")


def test_random_ids_have_the_reference_text(setup):
    r = random.Random(SEED)
    single = [i for i, b in setup["bytes_of"].items() if len(b) == 1]
    pools = [single, list(setup["bytes_of"]), sorted(setup["added"])]
    for start in range(0, COUNT, BATCH):
        ids = [[r.choice(r.choice(pools[:1 + k % 3])) for _ in range(int(r.random() ** 2 * 40))]
               for k in range(min(BATCH, COUNT - start))]
        found = baton("detokenize", setup["path"], [{"ids": i} for i in ids])
        compare(found, [expected_pieces(i, setup["bytes_of"], setup["added"]) for i in ids], ids,
                "pieces")
        whole = setup["hf"].decode_batch(ids, skip_special_tokens=False)
        compare(["".join(f["pieces"]) + f["tail"] for f in found], whole, ids, "decode")
