#!/usr/bin/env python3
"""Tests of check_sentences.py: `python3 scripts/test_check_sentences.py`."""

import contextlib
import io
import pathlib
import subprocess
import tempfile
import unittest

import check_sentences


def rules(name, text, **options):
    """Returns (line number, rule) of every finding in a text."""
    return [(number, rule) for number, rule, _ in check_sentences.findings(pathlib.PurePath(name), text, **options)]


class Rules(unittest.TestCase):
    def test_openers_count_at_the_start_of_a_sentence_only(self):
        self.assertEqual(rules("a.rs", "/// What a rank carries.\n"), [(1, "opener 'What'")])
        self.assertEqual(rules("a.rs", "//! Loads of ranks. Where none\n//! is known, zero.\n"), [(1, "opener 'Where'")])
        self.assertEqual(rules("a.rs", "/// Returns the ranks where a token goes, and how.\n"), [])
        self.assertEqual(rules("a.rs", "/// How-to guides are in docs/.\n"), [])

    def test_banned_words_count_across_lines(self):
        self.assertEqual(rules("a.rs", "/// Plans after so\n/// many steps.\n"), [(1, "banned 'so many'")])
        self.assertEqual(rules("a.rs", "/// Besides, it was placed beside it.\n"), [(1, "banned 'beside'")])
        self.assertEqual(rules("a.rs", "/// Moves `beside` and `told` are names.\n"), [])
        self.assertEqual(rules("a.md", "The command is `git\ntold`.\n"), [])

    def test_participles_are_no_nouns(self):
        self.assertEqual(rules("a.rs", "/// Returns the tried, best first.\n"), [(1, "participle 'the tried'")])
        self.assertEqual(rules("a.rs", "/// Returns the given placement.\n"), [])

    def test_long_comment_lines_but_no_long_code(self):
        self.assertEqual(rules("a.rs", "/// " + "word " * 22), [(1, "comment over 110 characters")])
        self.assertEqual(rules("a.rs", f'let a = "{"word " * 22}";\n'), [])
        self.assertEqual(rules("a.rs", "//! <https://example.org/" + "a" * 110 + ">"), [])
        self.assertEqual(rules("a.md", "word " * 30), [])

    def test_long_sentences_on_request(self):
        text = "word " * 26 + "end. Short.\n"
        self.assertEqual(rules("a.md", text), [])
        self.assertEqual(rules("a.md", text, long_sentences=True), [(1, "27 words")])


class Languages(unittest.TestCase):
    def test_markdown_without_code_and_links(self):
        self.assertEqual(rules("a.md", "```\nWhat is told\n```\n\n    How to\n\n`told`\n"), [])
        found = rules("a.md", "- [What](x.md) is it\n\n| a | **told** |\n")
        self.assertEqual(found, [(1, "opener 'What'"), (3, "banned 'told'")])

    def test_rust_strings_are_no_comments(self):
        self.assertEqual(rules("a.rs", 'let a = "x // told";\nlet b = 1; // anew\n'), [(2, "banned 'anew'")])

    def test_block_comments(self):
        self.assertEqual(rules("a.h", "/**\n * Frees it; null is let be.\n */\nint told;\n"), [(2, "banned 'let be'")])

    def test_python_comments_and_docstrings(self):
        source = 'def f():\n    """First.\n\n    Where it is."""\n    told = "told"  # told\n'
        self.assertEqual(rules("a.py", source), [(4, "opener 'Where'"), (5, "banned 'told'")])

    def test_make_and_shell(self):
        self.assertEqual(rules("Makefile", "test: x ## What it runs.\n"), [(1, "opener 'What'")])
        self.assertEqual(rules("a.sh", "#!/bin/told\n# is told\n"), [(2, "banned 'told'")])


class Files(unittest.TestCase):
    def run_on(self, files, *arguments):
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()) as printed:
            root = pathlib.Path(folder)
            subprocess.check_call(["git", "init", "-q"], cwd=root)
            for name, text in files.items():
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                (root / name).write_text(text)
            return check_sentences.main(arguments, root), printed.getvalue()

    def test_findings_fail(self):
        files = {"src/a.rs": "// told\n", "src/b.rs": "// Clean.\n"}
        self.assertEqual(self.run_on(files), (1, "src/a.rs:1: banned 'told': told\n"))

    def test_list_counts_findings(self):
        status, printed = self.run_on({"a.rs": "// told anew\n"}, "--list")
        self.assertEqual((status, printed.split()), (0, ["2", "a.rs"]))


if __name__ == "__main__":
    unittest.main()
