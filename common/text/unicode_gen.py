#!/usr/bin/env python3
"""Writes unicode_table.c from the code point ranges that the reference regex engine has.

    common/text/unicode_gen.py tests/data/text/unicode_ranges.json > common/text/unicode_table.c

Run by hand when the reference's Unicode version changes; the output is committed.
"""
import json
import sys

# Must agree with enum unicode_class in unicode.h.
LETTER, MARK, NUMBER, SYMBOL, BLANK, NEWLINE, ASCII_LETTER, CJK = (1 << i for i in range(8))
BLOCK = 128
N_CODE_POINTS = 0x110000
# The second split of the pre-tokenizer.
CJK_RANGES = [(0x4E00, 0x9FA5), (0x3040, 0x309F), (0x30A0, 0x30FF)]


def classes(ranges):
    table = bytearray(N_CODE_POINTS)

    def add(spans, bit):
        for first, last in spans:
            for cp in range(first, last + 1):
                table[cp] |= bit

    add(ranges["L"], LETTER)
    add(ranges["M"], MARK)
    add(ranges["N"], NUMBER)
    add(ranges["P"], SYMBOL)
    add(ranges["S"], SYMBOL)
    add(ranges["space"], BLANK)
    add(CJK_RANGES, CJK)
    add([(ord("A"), ord("Z")), (ord("a"), ord("z"))], ASCII_LETTER)
    for cp in (0x0A, 0x0D):
        assert table[cp] == BLANK
        table[cp] = NEWLINE
    return table


def rows(values, width, per_row):
    for i in range(0, len(values), per_row):
        yield "    " + ", ".join(f"{v:{width}d}" for v in values[i : i + per_row]) + ","


def main():
    with open(sys.argv[1], encoding="utf-8") as f:
        table = classes(json.load(f))
    blocks, index = [], []
    seen = {}
    for start in range(0, N_CODE_POINTS, BLOCK):
        block = bytes(table[start : start + BLOCK])
        if block not in seen:
            seen[block] = len(blocks)
            blocks.append(block)
        index.append(seen[block])
    assert len(blocks) <= 256
    print("/* Written by unicode_gen.py from unicode_ranges.json (Unicode 16.0): do not edit. */")
    print('#include "common/text/unicode.h"\n')
    print("/* clang-format off */")
    print(f"const uint8_t unicode_block[{len(index)}] = {{")
    print("\n".join(rows(index, 3, 16)))
    print("};\n")
    print(f"const uint8_t unicode_classes[{len(blocks)}][{BLOCK}] = {{")
    for i, block in enumerate(blocks):
        print(f"    {{ /* {i} */")
        print("\n".join("    " + r for r in rows(block, 3, 16)))
        print("    },")
    print("};")
    print("/* clang-format on */")


if __name__ == "__main__":
    main()
