"""The figures of docs/results and of the README have a command, and a record where one was kept. No TensorFlow."""

import json
import re
import subprocess

import pytest
from conftest import ROOT

RESULTS = ROOT / "docs" / "results"
# Pages that are made from records beside them: test_contest.py and test_claims.py compare them.
MADE = {"claims.md", "contest_16.md"}
PAGES = sorted(page for page in RESULTS.glob("*.md") if page.name not in {"README.md", *MADE})
RECORDS = sorted(RESULTS.glob("records/*.json"))
# Tables without a record, by page and section. Measure them again with --record=docs/results/records/NAME.json, show
# that, and delete the line here: no line may be added.
NO_RECORD = {
    ("accuracy.md", "The published search on CIFAR-10"),
    ("accuracy.md", "The published search on the digits"),
    ("bounds.md", "Latency"),
    ("bounds.md", "Parameters and multiply-adds"),
    ("cut.md", "Distance from the full network, of random weights"),
    ("faults.md", ""),
    ("latency.md", "After the published search"),
    ("latency.md", "With bounds, beside a network narrowed by hand"),
    ("ranking_cost.md", "Beside setting masks and calling `evaluate`"),
    ("ranking_cost.md", "What a race saves"),
    ("ranking_worth.md", ""),
    ("step_cost.md", "On a GPU"),
    ("step_cost.md", "On two CPU cores"),
    ("step_cost.md", "The loop beside `fit`"),
}
# Records of commits that were rebased later, or of a working tree with changes: no file may be added.
NO_COMMIT = {"claims/cifar10/ensembles.json", "contest_16.json"}
COMMAND = re.compile(r"\.venv/bin/python (?:-m (benchmarks(?:\.\w+)+)|(benchmarks/\w+\.py))")
SOURCE = re.compile(r"Measured at (\w+) on (.+) \(([\d-]+)\): \[record\]\((records/[\w-]+\.json)\)\.")
NO_SOURCE = re.compile(r"Measured on .+; entered by commit (\w+) \([\d-]+\)\. No record kept\.")


def sections(page):
    """Title and text of each section of a page; what is before the first has no title."""
    parts = re.split(r"^## (.+)$", page.read_text(), flags=re.MULTILINE)
    return list(zip(["", *parts[1::2]], parts[::2], strict=True))


def tables(text):
    """Tables of a text with figures, as rows without what separates the heading."""
    found = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    rows = [[row for row in table.splitlines() if not re.fullmatch(r"[| -]+", row)] for table in found]
    return [table for table in rows if any(re.search(r"\d", row.split("|", 2)[2]) for row in table[1:])]


def figures(text):
    """Numbers of a text: (as written, value)."""
    return [(found, float(found.replace(",", ""))) for found in re.findall(r"\d+(?:,\d{3})*(?:\.\d+)?", text)]


def unfounded(text, source):
    """Figures of a text that no figure of the source is, or rounds to."""
    values = {value for _, value in figures(source)}
    digits = {found: len(found.partition(".")[2]) for found, _ in figures(text)}
    return [f for f, value in figures(text) if not any(abs(v - value) <= 0.5 * 10 ** -digits[f] + 1e-9 for v in values)]


@pytest.fixture(scope="module")
def commits():
    """Tells whether a commit is in the history; skips where the history is not complete."""
    asked = ["git", "rev-parse", "--is-shallow-repository"], ["git", "rev-list", "HEAD"]
    answers = [subprocess.run(command, cwd=ROOT, capture_output=True, text=True) for command in asked]
    if any(answer.returncode for answer in answers) or answers[0].stdout.strip() != "false":
        pytest.skip("needs the whole history")
    known = answers[1].stdout.split()
    return lambda commit: any(found.startswith(commit) for found in known)


def test_figures_round():
    assert unfounded("51 of 64.0 %, 1,500", "50.51, 63.96, 1500.0") == []
    assert unfounded("51 of 64.0 %, 1,500", "50.4, 63.9, 15") == ["51", "64.0", "1,500"]


def problems(page):
    """What the tables of a page lack."""
    found = []
    for title, text in sections(page):
        for table in tables(text):
            before = text.partition(table[0])[0]
            commands = COMMAND.findall(before)
            paths = [ROOT / (file or module.replace(".", "/")) for module, file in commands]
            exist = [path.with_suffix(".py").exists() or (path / "__main__.py").exists() for path in paths]
            if not exist or not all(exist):
                found.append(f"{title}: no command of benchmarks before the table {table[0]}")
            if source := SOURCE.search(before):
                *made, file = source.groups()
                record = json.loads((page.parent / file).read_text())
                if made != [record["commit"], record["machine"], record["date"]] or record["command"] not in before:
                    found.append(f"{title}: not the commit, machine, date or command of {file}")
                found += [f"{title}: not in {file}: {row}" for row in table if row not in record["rows"]]
            elif not NO_SOURCE.search(before):
                found.append(f"{title}: neither a record nor 'No record kept'")
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_tables_have_a_command_and_a_source(page):
    assert page.read_text().partition("\n")[0].endswith("?"), "the title is the question"
    assert problems(page) == []


def test_a_table_that_differs_from_its_record_is_seen(tmp_path):
    rows = ["| network | ms |", "| M | 1.5 |"]
    command, machine = ".venv/bin/python -m benchmarks.bounds --steps=9", "2 cores (x86_64), Keras 3.15.1"
    record = {"command": command, "commit": "abc1234", "machine": machine, "date": "2026-11-28", "rows": rows}
    (tmp_path / "records").mkdir()
    (tmp_path / "records" / "bounds.json").write_text(json.dumps(record))
    source = f"Measured at abc1234 on {machine} (2026-11-28): [record](records/bounds.json)."
    good = f"# Why?\n\n## Here\n\n`{command}`\n\n{source}\n\n{rows[0]}\n|---|---|\n{rows[1]}\n"
    page = tmp_path / "page.md"
    for old, new, said in (
        ("", "", None),
        ("1.5 |", "1.6 |", "not in records/bounds.json: | M | 1.6 |"),
        ("abc1234", "abc1235", "not the commit"),
        ("--steps=9", "--steps=8", "not the commit, machine, date or command"),
        ("benchmarks.bounds", "benchmarks.bound", "no command of benchmarks"),
        ("Measured", "Found", "neither a record nor"),
    ):
        page.write_text(good.replace(old, new))
        found = problems(page)
        assert found == [] if said is None else any(said in problem for problem in found), found


def test_tables_without_a_record_become_fewer():
    found = {
        (page.name, title)
        for page in PAGES
        for title, text in sections(page)
        if tables(text) and not SOURCE.search(text)
    }
    assert found == NO_RECORD


def test_commits_are_in_the_history(commits):
    for page in PAGES:
        for commit in NO_SOURCE.findall(page.read_text()):
            assert commits(commit), f"{page.name}: {commit}"
    for file in sorted(RESULTS.rglob("*.json")):
        found = re.findall(r'"commit": "([^"]*)"', file.read_text())
        name = str(file.relative_to(RESULTS))
        assert found, name
        assert all(map(commits, found)) == (name not in NO_COMMIT), f"{name}: {found}"


def test_records_are_shown():
    shown = {found[3] for page in PAGES for found in SOURCE.findall(page.read_text())}
    assert shown == {str(record.relative_to(RESULTS)) for record in RECORDS}


def test_index_has_a_line_for_each_page_and_its_figures():
    index = (RESULTS / "README.md").read_text()
    rows = dict(re.findall(r"^\| \[[^\]]+\]\((\w+\.md)\) \| (.+) \|$", index, re.MULTILINE))
    assert set(rows) == {page.name for page in PAGES if page.name != "fixed.md"} | {"claims.md"}
    for name, verdict in rows.items():
        assert unfounded(verdict, (RESULTS / name).read_text()) == [], name


def test_figures_of_the_readme_are_on_a_page():
    (table,) = tables(re.search(r"^## Results\n.*?(?=^## )", (ROOT / "README.md").read_text(), re.M | re.S)[0])
    pages = "\n".join(page.read_text() for page in RESULTS.glob("*.md"))
    for row in table[1:]:
        _, _, result, command, _ = row.split("|")
        assert COMMAND.search(command.replace("`", ".venv/bin/python ", 1)), row
        assert unfounded(result, pages) == [], row
