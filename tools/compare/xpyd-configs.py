#!/usr/bin/env python3
"""Compares what xPyD-proxy (1.0.0 and 1.8.0, from PyPI) and `pdrelay xpyd` say of configuration files.

usage: xpyd-configs.py [--pdrelay PATH] [--cases FILE] [--only NAME] [--verbose] [--record]

Each original is installed once into a throw-away virtual environment below $COMPARE (default: the user's
cache folder, pdrelay-compare). Every file of xpyd-configs.txt goes to `--validate-config` of the originals
that know its keys and of `pdrelay xpyd`. The exit code must be the same, and so must what is printed: all
lines of 1.8 (1.0 prints fewer) for a good file; for a bad one, our message must have the original's
sentence. What differs must be in xpyd-differences.tsv, with its reason, and what is in there must differ:
else the exit code is 1. --record keeps the originals' answers in xpyd-answers.tsv, which a test of pdrelay
reads where there is no Python. Needs a Python 3.10 or newer with venv and pip's registry within reach.
"""

import argparse
import json
import os
import pathlib
import re
import subprocess
import sys

from originals import COMPARE, HERE, installed, pdrelay

MODULES = {"1.0": "core.MicroPDProxyServer", "1.8": "xpyd.proxy"}

# Runs in the original's environment: one process for all files, for its start takes seconds.
DRIVER = """
import contextlib, importlib, io, json, sys
main = importlib.import_module(sys.argv[1]).main
results = {}
for name, path in json.load(sys.stdin).items():
    out, err, code = io.StringIO(), io.StringIO(), 0
    sys.argv = ["xpyd", "--validate-config", path]
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as end:
            code = end.code or 0
    results[name] = [code, out.getvalue(), err.getvalue()]
json.dump(results, sys.__stdout__)
"""


def read_cases(path):
    """name -> (versions, text)"""
    cases = {}
    for part in re.split(r"(?m)^=== ", path.read_text())[1:]:
        head, _, text = part.partition("\n")
        name, versions = head.split()
        if name in cases:
            sys.exit(f"{path}: two cases are called {name}")
        cases[name] = (versions.split(","), text)
    return cases


def read_differences(path):
    """(case, version) -> reason, and [(pattern of their sentence, pattern of ours, reason)]"""
    cases, sentences = {}, []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if not line or line.startswith("#"):
            continue
        fields = line.split("\t")
        if fields[0] == "case" and len(fields) == 4:
            cases[fields[1], fields[2]] = fields[3]
        elif fields[0] == "sentence" and len(fields) == 4:
            sentences.append((re.compile(fields[1]), fields[2], fields[3]))
        else:
            sys.exit(f"{path}:{number}: not 'case NAME VERSION REASON' or 'sentence THEIRS OURS REASON'")
    return cases, sentences


def run_original(version, files):
    command = [installed(version) / "python", "-c", DRIVER, MODULES[version]]
    ran = subprocess.run(command, input=json.dumps(files), capture_output=True, text=True)
    if ran.returncode:
        sys.exit(f"{version} did not run:\n{ran.stderr}")
    return json.loads(ran.stdout)


def run_ours(binary, path):
    environment = {k: v for k, v in os.environ.items() if not k.endswith("_API_KEY")}
    command = [binary, "xpyd", "--validate-config", path]
    ran = subprocess.run(command, capture_output=True, text=True, env=environment, stdin=subprocess.DEVNULL)
    return ran.returncode, ran.stdout, ran.stderr


def sentence(text):
    """What an original complains about, without the frames of its libraries."""
    text = text.partition("Config validation failed: ")[2].strip()
    lines = text.splitlines()
    if lines and re.match(r"\d+ validation errors? for ", lines[0]):
        inner = next(line for line in lines[1:] if line.startswith("  "))
        field = next((line for line in lines[1:] if not line.startswith(" ")), "")
        text = re.sub(r" \[type=.*", "", inner).strip().removeprefix("Value error, ")
        return f"{field}: {text}" if field and is_of_library(text) else text
    return lines[0] if lines else ""


def record(path, answers):
    """One line per answer: version, case, exit code, and what a test can look for without this script: the
    lines of a good file after its first, or the part of the sentence that is not the library's own."""
    lines = ["# The originals' answers to xpyd-configs.txt; written by `xpyd-configs.py --record`.\n"]
    for (version, name), (code, out, err) in answers.items():
        text = "|".join(out.strip().splitlines()[1:])
        if code:
            text = sentence(err)
            text = re.split(r": invalid literal|(?<=Malformed YAML) in |(?<=expected one of) \[", text)[0]
            text = "" if re.match(r"[\w.]+: (Input|Field|Extra)", text) else text
        lines.append(f"{version}\t{name}\t{code}\t{text}\n")
    path.write_text("".join(lines))


def is_of_library(text):
    """A sentence that says nothing without its field."""
    return text.startswith(("Input should be", "Field required", "Extra inputs"))


def differs(version, theirs, ours, sentences):
    """Why the two do not agree; None: they do."""
    (code, out, err), (our_code, our_out, our_err) = theirs, ours
    if code != our_code:
        return f"exit code {code}, ours {our_code}"
    if code == 0:
        wanted, got = out.strip().splitlines(), our_out.strip().splitlines()
        # 1.0 prints the same lines, but for those about the topology.
        if version == "1.0":
            got = [line for line in got if not line.startswith(("  topology:", "  transfer:"))]
        return None if wanted == got else f"prints {wanted}, ours {got}"
    wanted = sentence(err)
    got = our_err.partition("Config validation failed: ")[2]
    first = got.splitlines()[0] if got else ""
    if wanted in first:
        return None
    for theirs, ours_pattern, _ in sentences:
        match = theirs.fullmatch(wanted)
        if match is None:
            continue
        pattern = re.sub(r"\\(\d)", lambda group: re.escape(match[int(group[1])]), ours_pattern)
        if re.search(pattern, first):
            return None
    return f"says {wanted!r}, ours {first!r}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pdrelay", default=pdrelay("debug"), type=pathlib.Path)
    parser.add_argument("--cases", default=HERE / "xpyd-configs.txt", type=pathlib.Path)
    parser.add_argument("--only", help="one case")
    parser.add_argument("--record", action="store_true", help="write xpyd-answers.tsv")
    parser.add_argument("--verbose", action="store_true", help="everything that was printed")
    args = parser.parse_args()
    if not args.pdrelay.exists():
        sys.exit(f"{args.pdrelay} is not built: cargo build, or name it with --pdrelay")
    cases = read_cases(args.cases)
    if args.only:
        cases = {args.only: cases[args.only]}
    known, sentences = read_differences(HERE / "xpyd-differences.tsv")

    folder = COMPARE / "configs"
    folder.mkdir(parents=True, exist_ok=True)
    paths = {name: str(folder / f"{name}.yaml") for name in cases}
    for name, (_, text) in cases.items():
        pathlib.Path(paths[name]).write_text(text)
    ours = {name: run_ours(args.pdrelay, path) for name, path in paths.items()}

    agree = listed = wrong = 0
    answers = {}
    for version in MODULES:
        files = {name: paths[name] for name, (versions, _) in cases.items() if version in versions}
        for name, theirs in (run_original(version, files) if files else {}).items():
            answers[version, name] = theirs
            why = differs(version, theirs, ours[name], sentences)
            reason = known.pop((name, version), None)
            if why is None and reason is None:
                agree += 1
                verdict = "agrees"
            elif why and reason:
                listed += 1
                verdict = f"DIFFERS, as listed ({reason}): {why}"
            elif why:
                wrong += 1
                verdict = f"DIFFERS: {why}"
            else:
                wrong += 1
                verdict = "AGREES, but is listed as different"
            print(f"{version} {name:32} {verdict}")
            if args.verbose:
                print(f"    theirs: {theirs}\n    ours:   {ours[name]}")
    if args.record and not args.only:
        record(HERE / "xpyd-answers.tsv", answers)
    if not args.only:
        for name, version in known:
            wrong += 1
            print(f"{version} {name:32} is listed, but there is no such case")
    print(f"{len(cases)} files: {agree} agree, {listed} differ as listed, {wrong} are wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
