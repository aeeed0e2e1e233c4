"""What the documents show works, and what they point at exists."""

import re
import types

import pytest
from conftest import ROOT

DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


def test_public_names_are_functions_and_classes_whatever_was_imported_before():
    import tfnas
    import tfnas.stages.retrain

    names = [name for name in dir(tfnas) if name not in ("layers", "supernets", "testing", "__version__")]
    assert {"gate", "rank", "subnet", "cost", "Posterior", "Architecture", "Gated", "Supernet"} <= set(names)
    for name in names:
        assert callable(getattr(tfnas, name)) and not isinstance(getattr(tfnas, name), types.ModuleType), name
    for module in (tfnas.layers, tfnas.supernets):
        assert isinstance(module, types.ModuleType)
    with pytest.raises(AttributeError, match="no attribute 'subnett'"):
        tfnas.subnett  # noqa: B018


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document):
    text = document.read_text()
    assert text.startswith("# ")
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if not target.startswith("http"):
            path, _, anchor = target.partition("#")
            linked = document.parent / path if path else document
            assert linked.exists(), target
            headings = re.findall(r"^#+ (.+)$", linked.read_text(), re.MULTILINE) if anchor else []
            assert not anchor or anchor in [re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings], (
                target
            )


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_tables_are_tables(document):
    """Without the row below its heading, a table is shown as one long line."""
    text = re.sub(r"^```.*?^```", "", document.read_text(), flags=re.MULTILINE | re.DOTALL)
    for rows in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        heading, below, *_ = [*rows.splitlines(), ""]
        assert re.fullmatch(r"\|(?: ?:?-+:? ?\|)+", below) and below.count("|") == heading.count("|"), heading
