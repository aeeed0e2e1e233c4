"""Small closed forms of random networks, and what they mean, written out unit by unit."""

import itertools

import numpy as np
from hypothesis import strategies as st

from tfnas.search_space.closed_form import ClosedForm, Group, Term, Width


@st.composite
def forms(draw, most_units=9, resources=("parameters", "multiply_adds")):
    """A form of up to four groups, with terms on both sides of a group, concatenations, needs and chains of death."""
    count = draw(st.integers(1, 4))
    sizes = [draw(st.integers(1, max(1, most_units // count))) for _ in range(count)]
    groups = tuple(Group(f"g{i}", size, draw(st.booleans()), draw(st.booleans())) for i, size in enumerate(sizes))
    members = st.lists(st.tuples(st.integers(0, count - 1), st.integers(1, 3)), max_size=3, unique_by=lambda m: m[0])
    widths = (Width(1), *(Width(draw(st.integers(0, 3)), tuple(draw(members))) for _ in range(draw(st.integers(1, 4)))))
    some = st.lists(st.integers(0, count - 1), max_size=2, unique=True).map(tuple)
    number = st.integers(0, len(widths) - 1)
    term = st.builds(Term, st.sampled_from(["a", "b", "c"]), st.integers(1, 50).map(float), number, number, some)
    terms = {resource: tuple(draw(st.lists(term, min_size=1, max_size=5))) for resource in resources}
    return ClosedForm(groups, widths, terms, tuple(draw(some) for _ in range(count)))


def masks_of(form):
    """All masks of the form's units, bool, shape (2**U, U)."""
    return np.array(list(itertools.product([False, True], repeat=form.num_units)))


def units_of(form):
    """The group of each unit."""
    return [g for g, group in enumerate(form.groups) for _ in range(group.size)]


def closed(form, mask, multiple=1):
    """Kept units by group, by repeating what the definition says until nothing changes."""
    of = units_of(form)
    kept = [sum(bool(keep) for keep, g in zip(mask, of, strict=True) if g == h) for h in range(len(form.groups))]
    kept = [
        k if group.may_empty else max(k, min(multiple, group.size)) for k, group in zip(kept, form.groups, strict=True)
    ]
    while True:
        further = [0 if any(kept[h] == 0 for h in form.dead[g]) else k for g, k in enumerate(kept)]
        if further == kept:
            return kept
        kept = further


def cost(form, kept, resource):
    """A closed architecture's cost, term by term."""

    def width(i):
        return form.widths[i].pinned + sum(m * kept[g] for g, m in form.widths[i].members)

    return sum(
        term.coefficient * width(term.first) * width(term.second)
        for term in form.terms[resource]
        if all(kept[g] > 0 for g in term.needs)
    )
