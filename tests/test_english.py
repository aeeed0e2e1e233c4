"""Texts avoid home-made phrases, and code avoids home-made names."""

import ast
import io
import re
import tokenize

import pytest
from conftest import ROOT

FOLDERS = ("tfnas", "pipelines", "configs", "benchmarks", "examples", "docs")

# Regular expressions of phrases to avoid in documents, docstrings, comments and messages, and what to write instead.
PHRASES = {
    r"\b(goes|go|going|went) on\b": "resumes, continues",
    r"\bas (they|it) lies?\b": "raw",
    r"(?<![Tt]here )\bis no (?!(longer|more|less|slower|faster|larger|smaller|other|need|lower|higher)\b)": "is not a",
    r"\bnobody\b": "no other process, unused",
    r"\bis yours to\b|\byours to see to\b": "you must ensure",
    r"\btold\b(?! apart)": "reported, received",
    r"\bmend(s|ed|ing)?\b(?!-since)": "fix",
    r"\bwhole or not at all\b": "atomically",
    r"\b(taken?|counted) anew\b": "recomputed",
    r"\bsuper-network": "supernet",
    r"\b(FLOPs|MACs)\b": "multiply-adds",
    r"\bknows? nothing of\b": "is independent of",
    r"(?i)\b\w*(normal|optim|regular|quant|minim|maxim|initial|standard|linear|serial|summar)is(e|ing|ation)": "-ize",
    r"(?i)colour|\bgrey|behaviour|neighbour|\bfavour|\blabelled\b|\bcatalogue|\bcentre": "American spelling",
}
# First words that a docstring does not have: it begins with a verb or a noun phrase.
OPENINGS = ("Of", "What", "That", "As", "How", "Where", "By", "From", "For", "Who", "On", "With")
# Words that names do not consist of; parts of a name are separated by underscores.
WORDS = {"told", "say", "said", "whole", "odd", "hits", "got", "mine", "theirs", "ours", "twin", "nobody", "alike"}


def python_files():
    return sorted(file for folder in FOLDERS for file in (ROOT / folder).rglob("*.py"))


def documents():
    found = [file for file in (ROOT / "docs").glob("*.md") if not file.name.startswith("results")]
    return sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *found])


def prose(document):
    """Yields (line number, text) of a document without its code blocks and inline code."""
    text = re.sub(r"^( *)```.*?^\1```$", lambda m: "\n" * m[0].count("\n"), document.read_text(), flags=re.M | re.S)
    for number, line in enumerate(text.splitlines(), 1):
        yield number, re.sub(r"`[^`]*`", "`", line)


def texts(source):
    """Yields (line number, text) of the comments, docstrings and other strings of Python source."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            for i, line in enumerate(node.value.splitlines()):
                yield node.lineno + i, line


def names(tree):
    """Yields (line number, name) of everything that the code defines or assigns."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.lineno, node.name
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.attr


def found_phrases(lines):
    for number, text in lines:
        for phrase, instead in PHRASES.items():
            if match := re.search(phrase, text):
                yield f"{number}: '{match[0]}' ({instead}): {text.strip()[:100]}"


@pytest.mark.parametrize("document", documents(), ids=lambda path: path.name)
def test_documents_avoid_phrases(document):
    assert list(found_phrases(prose(document))) == []


@pytest.mark.parametrize("folder", FOLDERS)
def test_code_avoids_phrases(folder):
    files = sorted((ROOT / folder).rglob("*.py"))
    assert [f"{f.relative_to(ROOT)}:{hit}" for f in files for hit in found_phrases(texts(f.read_text()))] == []


def test_docstrings_begin_with_a_verb_or_a_noun_phrase():
    found = []
    for file in python_files():
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef):
                text = ast.get_docstring(node) or ""
                if text.split(" ")[0].strip(",:;") in OPENINGS:
                    found.append(f"{file.relative_to(ROOT)}:{getattr(node, 'lineno', 1)}: {text.splitlines()[0][:90]}")
    assert found == []


def test_names_are_those_of_the_field():
    found = [
        f"{file.relative_to(ROOT)}:{number}: {name}"
        for file in python_files()
        for number, name in names(ast.parse(file.read_text()))
        if WORDS & set(name.lower().split("_"))
    ]
    assert found == []


def test_phrases_and_names_are_found():
    assert list(found_phrases([(1, "The run goes on from there; it is no dial, and nobody is told.")]))
    assert not list(found_phrases([(1, "There is no other file, and the value is no longer needed.")]))
    assert WORDS & set("_looks_whole".split("_")) and dict(names(ast.parse("told = 1"))) == {1: "told"}
