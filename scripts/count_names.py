#!/usr/bin/env python3
"""Counts single-word function and type names, per crate, per top-level module and in total.

    scripts/count_names.py [--json]

Counted are the names that tracked Rust files define with `fn`, `struct`, `enum`, `trait` and `type`. Left
out are the folders tests, benches, examples and fuzz, items under `#[cfg(test)]`, and names that another
definition dictates: functions of `impl TRAIT for TYPE` blocks and associated types.

Each distinct name of a row counts once, so a method that ten types have weighs no more than one. A function
name is a single word if it has no underscore inside. A type name is one if no capital follows its first
letter (`Plan`, not `PlanReport`). Columns:

    fns, visible    distinct function names: of any visibility; `pub` or `pub(..)` ones alone
    types           distinct type names of any visibility
    1 word          share of them that are a single word
    repeated        share of the type names that several types of the row have
"""

import argparse
import collections
import json
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
LEFT_OUT = {"tests", "benches", "examples", "fuzz"}
COMMENT_OR_STRING = re.compile(
    r"""//[^\n]*|/\*.*?\*/|\bb?r(#*)".*?"\1|b?"(?:\\.|[^"\\])*"|b?'(?:\\[^']+|[^'\\])'""", re.DOTALL
)
TEST_ITEM = re.compile(r"#\[cfg\((?:all\()?test\b[^\]]*\]")
TRAIT_IMPL = re.compile(r"^ *(?:unsafe )?impl\b[^;{}]*\bfor\b(?!\s*<)[^;{}]*", re.MULTILINE)
FUNCTION = re.compile(r'^ *(pub(?:\([^)]*\))? )?(?:(?:const|async|unsafe|extern(?: "C")?)\s+)*fn (\w+)', re.MULTILINE)
TYPE = re.compile(r"^(?: *(?:pub(?:\([^)]*\))? )?(?:struct|enum|(?:unsafe )?trait)|(?:pub(?:\([^)]*\))? )?type) (\w+)", re.MULTILINE)


def without_items(text, head):
    """Removes every item whose head matches, up to its closing brace or, without braces, its semicolon."""
    while match := head.search(text):
        depth, end = 0, len(text)
        for bracket in re.compile(r"[][(){};]").finditer(text, match.end()):
            depth += (bracket[0] in "([{") - (bracket[0] in ")]}")
            if depth == 0 and bracket[0] in "};":
                end = bracket.end()
                break
        text = text[: match.start()] + text[end:]
    return text


def defined_names(text):
    """Returns the names of all functions, of the visible ones, and of the types that a Rust file defines."""
    text = COMMENT_OR_STRING.sub(" ", text)
    text = without_items(without_items(text, TEST_ITEM), TRAIT_IMPL)
    functions = FUNCTION.findall(text)
    return [name for _, name in functions], [name for visible, name in functions if visible], TYPE.findall(text)


def is_single_word(name):
    """Returns whether a function or type name is one word."""
    return "_" not in name.strip("_") and not re.search(r"[^A-Z_][A-Z]", name)


def share(count, of):
    """Returns a percentage with one decimal."""
    return round(100 * count / of, 1) if of else 0.0


def row(files):
    """Returns the counts over the names of several files."""
    functions, visible, types = (collections.Counter(name for names in lists for name in names) for lists in zip(*files))
    single = [share(sum(map(is_single_word, names)), len(names)) for names in (functions, visible, types)]
    return {
        "functions": len(functions),
        "single_word_functions_percent": single[0],
        "visible_functions": len(visible),
        "single_word_visible_functions_percent": single[1],
        "types": len(types),
        "single_word_types_percent": single[2],
        "repeated_types_percent": share(sum(count > 1 for count in types.values()), len(types)),
    }


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object: row name to counts")
    options = parser.parse_args(arguments)
    groups = collections.defaultdict(list)
    for file in subprocess.check_output(["git", "ls-files", "*.rs"], cwd=ROOT, text=True).splitlines():
        crate, source, module = ("/" + file).rpartition("/src/")[0].strip("/"), "src/", file.split("src/")[-1]
        if LEFT_OUT & set(pathlib.PurePath(file).parts) or source not in file:
            continue
        names = defined_names((ROOT / file).read_text())
        for group in (crate or ".", f"{crate or '.'} {module.split('/')[0].removesuffix('.rs')}", "total"):
            groups[group].append(names)
    rows = {group: row(groups[group]) for group in sorted(groups.keys() - {"total"})}
    rows["total"] = row(groups["total"])
    if options.json:
        print(json.dumps(rows, indent=1))
        return 0
    print(f"{'':32}{'fns':>6}{'1 word':>8}{'visible':>9}{'1 word':>8}{'types':>7}{'1 word':>8}{'repeated':>10}")
    for group, counts in rows.items():
        name = "  " + group.split()[1] if " " in group else group
        fns, one, visible, one_visible, types, one_type, repeated = counts.values()
        print(f"{name:32}{fns:6}{one:7.1f}%{visible:9}{one_visible:7.1f}%{types:7}{one_type:7.1f}%{repeated:9.1f}%")
    return 0


if __name__ == "__main__":
    sys.exit(main())
