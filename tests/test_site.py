"""The documentation's site is built as `make docs` builds it: a warning, and with it a dead link, is an error."""

import re

import processes
import pytest
from conftest import ROOT

# Sphinx imports tfnas for the reference, which is faster where TensorFlow is loaded.
_SPHINX = "import sys; from sphinx.cmd.build import main; sys.exit(main(sys.argv[1:]))"


def build(folder, docs=ROOT / "docs"):
    """Runs the Makefile's command on `docs`, into a folder of its own; returns its exit code and what it said."""
    (line,) = re.findall(r"-m sphinx (.*) docs build/docs$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    process = processes.start(_SPHINX, [*line.split(), docs, folder / "site"], folder / "stdout", folder / "stderr")
    process.join()
    return process.exitcode, (folder / "stderr").read_text()


@pytest.mark.slow
def test_site_is_built_without_a_warning(tmp_path):
    code, said = build(tmp_path)
    assert code == 0, said
    reference = (tmp_path / "site" / "api.html").read_text()
    for name in dir(__import__("tfnas")):
        if name not in ("layers", "supernets", "testing", "__version__"):
            assert f'id="tfnas.{name}"' in reference, f"{name} is missing in docs/api.md"
    pages = {path.relative_to(ROOT / "docs").with_suffix(".html") for path in ROOT.glob("docs/**/*.md")}
    listed = {page for page in pages if re.search(f'href="(../)*{page}"', (tmp_path / "site/index.html").read_text())}
    assert pages - listed == {ROOT.joinpath("index.html").relative_to(ROOT)}, "not in the index's lists of pages"


@pytest.mark.slow
def test_a_dead_link_is_an_error(tmp_path):
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "index.md").write_text("# Index\n\n[nowhere](nowhere.md)\n")
    (docs / "conf.py").write_text((ROOT / "docs" / "conf.py").read_text())
    code, said = build(tmp_path, docs)
    assert code == 1
    assert "cross-reference target not found: 'nowhere.md'" in said
