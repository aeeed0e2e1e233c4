# Two commands for a newcomer: `make demo` and `make test`. Needs Python 3.11 and make; all else is set up in .venv.
PYTHON ?= python3.11

.PHONY: setup demo test lint fast docs claims-quick clean

setup: .venv/done

.venv/done: pyproject.toml constraints.txt
	@echo "Setting up .venv (about 4 GB with all that the tests, pipelines and documents need; minutes) ..."
	@$(PYTHON) -c 'import sys; assert sys.version_info[:2] == (3, 11), "Python 3.11 is needed, this is " + sys.version'
	@$(PYTHON) -m venv .venv
	@.venv/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: setup
	.venv/bin/tfnas run --config=configs/digits.py --workdir=runs/digits

test: setup lint
	.venv/bin/python -m pytest -n auto --dist loadfile

fast: setup
	.venv/bin/python -m pytest -n auto --dist loadfile -m 'not slow'

# Whether the whole study of the paper's claims runs (docs/results/README.md); its figures are of no account.
claims-quick: setup
	.venv/bin/python -m benchmarks.claims --config=configs/claims_quick.py --workdir=runs/claims_quick --seeds=0,1 \
		--export=runs/claims_quick/results/claims/quick

lint: setup
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy

docs: setup
	.venv/bin/python -m sphinx --fail-on-warning --keep-going --quiet -b html docs build/docs
	@echo "docs      build/docs/index.html"

clean:
	rm -rf .venv runs build *.egg-info
