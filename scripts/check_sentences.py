#!/usr/bin/env python3
"""Checks comments and Markdown prose against the sentence rules of CONTRIBUTING.md.

    scripts/check_sentences.py [FILE ...]         print findings as FILE:LINE: RULE: TEXT, exit 1 if any
    scripts/check_sentences.py --list             print the number of findings per file
    scripts/check_sentences.py --long             also print sentences of over 25 words, which do not fail
"""

import argparse
import ast
import io
import itertools
import pathlib
import re
import subprocess
import sys
import tokenize

ROOT = pathlib.Path(__file__).resolve().parent.parent
MAX_COMMENT_CHARS = 110
MAX_SENTENCE_WORDS = 25

SLASH, HASH = {".rs", ".cu", ".h", ".c", ".cpp", ".js"}, {".sh", "Makefile", "run", "debian", "skipped"}
BANNED = re.compile(r"\b(told|anew|beside|so\s+many|in\s+force|let\s+be)\b", re.IGNORECASE)
# A paragraph may open in lower case; within one, a capital marks the start of a sentence.
OPENER = re.compile(r"(?:^\W*(?i:(what|who|where|whether|how))|[.!?][\")\]]* +(What|Who|Where|Whether|How))\b(?!-)")
PARTICIPLE = re.compile(
    r"\b(the (?:tried|told|seen|made|given|said|sent|wanted|asked|left))(?=[.,;:)]|$| (?:and|or|of|is|are|was|were)\b)", re.IGNORECASE
)
# Inline code, targets of links, emphasis.
MARKUP = re.compile(r"`[^`]*`|\]\([^)]*\)|[*\[_]")
NEW_PARAGRAPH = re.compile(r"\s*([-*+] |\d+\. |#+ |\|)")


def comment_lines(path, text):
    """Returns (line number, comment text, own line) of every comment.

    An empty text ends a paragraph. A comment has its own line if no code stands before it.
    """
    if path.suffix == ".md":
        return [(number, line, False) for number, line in enumerate(text.splitlines(), 1)]
    if path.suffix in (".py", ".pyi"):
        return python_comments(text)
    found, in_block = [], False
    for number, line in enumerate(text.splitlines(), 1):
        bare = line.strip()
        if path.suffix in SLASH and (in_block or bare.startswith("/*")):
            in_block = "*/" not in bare
            found.append((number, re.sub(r"^(/\*+|\*+(?!/))|\*+/.*$", "", bare), True))
        elif path.suffix in SLASH and bare.startswith("//"):
            found.append((number, re.sub(r"^//[/!]?", "", bare), True))
        elif path.suffix not in SLASH and re.match(r"#(?!!)", bare):
            found.append((number, bare.lstrip("#"), True))
        else:
            # A comment behind code is a paragraph of its own. After an odd number of quotes it is a string.
            marker = " // " if path.suffix in SLASH else " ## " if path.name == "Makefile" else " # "
            code, _, comment = line.partition(marker)
            found.append((number, "", False))
            if comment and code.count('"') % 2 == 0:
                found += [(number, " " + comment, False), (number, "", False)]
    return found


def python_comments(text):
    """Returns the comments and docstrings of a Python file, as comment_lines does."""
    found = []
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT and not token.string.startswith("#!"):
            own_line = token.line.strip() == token.string
            found.append((token.start[0], token.string.lstrip("#"), own_line))
            found += [] if own_line else [(token.start[0], "", False)]
    for node in ast.walk(ast.parse(text)):
        documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        if isinstance(node, documented) and (docstring := ast.get_docstring(node)):
            lines = [*docstring.splitlines(), ""]
            found += [(node.body[0].lineno + offset, " " + line, True) for offset, line in enumerate(lines)]
    return sorted(found, key=lambda line: line[0])


def paragraphs(lines, markdown):
    """Yields paragraphs as lists of (line number, text), without code blocks."""
    paragraph, in_fence, last = [], False, 0
    for number, line, _ in lines:
        fence = line.strip().startswith("```")
        in_fence ^= fence
        # Comments in source files carry one space behind their marker.
        code = not paragraph and line.startswith("    " if markdown else "     ")
        text = "" if fence or in_fence or code else line
        if paragraph and (not text.strip() or NEW_PARAGRAPH.match(text) or number > last + 1):
            yield paragraph
            paragraph = []
        if text.lstrip().startswith("|"):
            yield from ([(number, cell)] for cell in text.split("|") if cell.strip())
        elif text.strip():
            paragraph.append((number, re.sub(r"^(\s*)([-*+] |\d+\. |#+ )", r"\1", text)))
        last = number
    if paragraph:
        yield paragraph


def findings(path, text, long_sentences=False):
    """Returns (line number, rule, text) of every violation in a file, by line."""
    lines, found = comment_lines(path, text), []
    for paragraph in paragraphs(lines, path.suffix == ".md"):
        ends = list(itertools.accumulate(len(line.strip()) + 1 for _, line in paragraph))
        joined = " ".join(line.strip() for _, line in paragraph)
        prose = MARKUP.sub(lambda match: ("x" if match[0][0] == "`" else "").ljust(len(match[0])), joined)

        def line_at(offset):
            return paragraph[next(index for index, end in enumerate(ends) if offset < end)][0]

        for pattern, rule in ((BANNED, "banned"), (OPENER, "opener"), (PARTICIPLE, "participle")):
            for match in pattern.finditer(prose):
                start = match.start(match.lastindex)
                found.append((line_at(start), f"{rule} '{match[match.lastindex]}'", joined[max(start - 20, 0) : start + 60]))
        for match in re.finditer(r".+?(?:[.!?](?= )|$)", prose) if long_sentences else ():
            if (words := len(re.findall(r"\w[\w.'/-]*", match[0]))) > MAX_SENTENCE_WORDS:
                found.append((line_at(match.start()), f"{words} words", joined[match.start() : match.end()].strip()))
    if path.suffix != ".md":
        source = text.splitlines()
        for number in {number for number, comment, own_line in lines if own_line and comment.strip()}:
            line = source[number - 1]
            # Rows of tables and links cannot be wrapped.
            if len(line) > MAX_COMMENT_CHARS and not re.match(r"\s*\S+ (\||\S+$)", line):
                found.append((number, f"comment over {MAX_COMMENT_CHARS} characters", line.strip()[:60]))
    return sorted(found)


def is_checked(path):
    """Returns whether the script reads comments or prose of this kind of file."""
    return path.suffix in SLASH | {".md", ".py", ".pyi", ".sh"} or path.name in HASH and path.suffix == ""


def main(arguments=None, root=ROOT):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("files", nargs="*")
    for option in ("--list", "--long"):
        parser.add_argument(option, action="store_true")
    options = parser.parse_args(arguments)
    tracked = subprocess.check_output(["git", "ls-files", "-co", "--exclude-standard"], cwd=root, text=True).splitlines()
    checked = sorted({file for file in tracked if is_checked(pathlib.PurePath(file)) and (root / file).is_file()})
    chosen = options.files or checked
    found = {file: findings(pathlib.PurePath(file), (root / file).read_text(), options.long) for file in chosen}
    failing = [file for file in chosen if any(not rule.endswith("words") for _, rule, _ in found[file])]
    if options.list:
        for file in chosen:
            if found[file]:
                print(f"{len(found[file]):6}  {file}")
        return 0
    for file in chosen:
        for number, rule, text in found[file]:
            print(f"{file}:{number}: {rule}: {text}")
    return 1 if failing else 0


if __name__ == "__main__":
    sys.exit(main())
