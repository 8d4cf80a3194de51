"""Runs `baton` commands that answer JSON lines, and reads the shared text cases."""
import json
import os
import pathlib
import subprocess

ROOT = pathlib.Path(__file__).resolve().parents[2]
BUILD = pathlib.Path(os.environ.get("BATON_BUILD", ROOT / "build"))
DATA = ROOT / "tests/data/text"


def cases(name):
    with open(DATA / name, encoding="utf-8", newline="\n") as f:
        return [json.loads(line) for line in f.read().split("\n") if line]


def run_lines(command, lines, *flags, ascii_only=False):
    """Each line is a str (sent as it is), bytes, or an object; returns the answers."""
    raw = b"".join(
        (x if isinstance(x, bytes) else x.encode() if isinstance(x, str)
         else json.dumps(x, ensure_ascii=ascii_only).encode()) + b"\n"
        for x in lines
    )
    done = subprocess.run([BUILD / "deploy/baton/baton", command, *flags], input=raw,
                          capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr.decode()
    answers = [json.loads(line) for line in done.stdout.decode("utf-8").split("\n") if line]
    assert len(answers) == len(lines)
    return answers
