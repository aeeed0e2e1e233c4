# Two commands for a newcomer: `make demo` and `make test`. Needs Python 3.11 and make; all else is set up in .venv.
PYTHON ?= python3.11
SHELL := bash
# Where it is set, each worker of the tests and each interpreter that they start compiles all of tfnas anew.
unexport PYTHONDONTWRITEBYTECODE
# Of pip's lines, those that show how far it is: every tenth package, large downloads, and the installation.
PROGRESS := while read -r verb what rest; do case "$$verb $$what" in \
	Collecting*) if ((++found % 10 == 0)); then echo "  $$found packages found, the last $$what"; fi ;; \
	Downloading*) if [[ $$rest =~ [0-9]{3}\.[0-9].MB ]]; then echo "  downloading $$what $$rest"; fi ;; \
	"Installing collected") echo "  installing $$(wc -w <<< "$${rest\#packages:}") packages, which takes a minute or two" ;; \
	esac; done

.PHONY: setup demo test lint fast docs notebooks environments claims-quick clean

setup: .venv/done

.venv/done: pyproject.toml constraints.txt
	@echo "Setting up .venv (about 4 GB with all that the tests, pipelines and documents need; minutes) ..."
	@$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "Python 3.11 or newer is needed, this is " + sys.version'
	@$(PYTHON) -m venv .venv
	@set -o pipefail; .venv/bin/python -m pip install --disable-pip-version-check --progress-bar off \
		--constraint constraints.txt --editable '.[dev]' | $(PROGRESS)
	@touch $@

demo: setup
	.venv/bin/tfnas run --config=configs/digits.py --workdir=runs/digits

test: setup lint
	.venv/bin/python -m pytest -n auto --dist loadfile --durations=30

fast: setup
	.venv/bin/python -m pytest -n auto --dist loadfile -m 'not slow'

# Whether tfnas installs and works with the oldest packages, on the newest Python that it supports, and beside
# packages that are there before (docs/install.md).
environments: setup
	.venv/bin/python benchmarks/environments.py 3.11:oldest 3.13:newest 3.11:beside

# Whether the whole study of the paper's claims runs (docs/results/claims.md); its figures are of no account.
claims-quick: setup
	.venv/bin/python -m benchmarks.claims --config=configs/claims_quick.py --workdir=runs/claims_quick --seeds=0,1 \
		--export=runs/claims_quick/results/claims/quick

lint: setup
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy

# The examples as notebooks with their outputs.
notebooks: setup
	for example in examples/*.py; do \
		.venv/bin/jupytext --to ipynb --execute --output build/notebooks/$$(basename $$example .py).ipynb $$example || exit 1; \
	done

docs: setup
	.venv/bin/python -m sphinx --fail-on-warning --keep-going --quiet -b html docs build/docs
	@echo "docs      build/docs/index.html"

clean:
	rm -rf .venv runs build *.egg-info
