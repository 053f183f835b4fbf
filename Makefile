# Everything starts from a machine with Python 3.11, make and git; each target installs what it needs first.
PYTHON ?= python3
BIN := .venv/bin
RUN_INSTALLED := .venv/.run
INSTALLED := .venv/.installed
DOCS_INSTALLED := .venv/.docs
RECORDED := docs/images/terminal.svg
# cpu: PyTorch's builds without CUDA, a third of the size; or another word of uv's --torch-backend
TORCH ?=
ARGS ?=
# Processes that test: one more than there are cores, for some tests wait
WORKERS ?= $(shell expr $$(getconf _NPROCESSORS_ONLN) + 1)

# Where this is set, each of the many processes below would compile all that it imports: ten seconds of CPU time
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help install run test test-all test-slow test-gpu ui screenshots docs reference lint format lock clean
.DEFAULT_GOAL := help

help: ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

install: $(INSTALLED) ## make .venv with everything, in exactly the versions of requirements.lock

UV_INSTALL = $(BIN)/uv pip install --quiet --python $(BIN)/python $(if $(TORCH),--torch-backend $(TORCH)) --constraints requirements.lock

$(BIN)/uv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "speechtrain needs Python 3.11 or later, $(PYTHON) is " + sys.version.split()[0])'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv

$(RUN_INSTALLED): pyproject.toml requirements.lock | $(BIN)/uv
	$(UV_INSTALL) --editable '.[synth]'
	@touch $@

$(INSTALLED): pyproject.toml requirements.lock | $(BIN)/uv
	$(UV_INSTALL) --editable '.[dev]'
	@touch $@ $(RUN_INSTALLED)

$(DOCS_INSTALLED): pyproject.toml | $(BIN)/uv
	$(UV_INSTALL) --group docs
	@touch $@

run: $(RUN_INSTALLED) ## train on spoken digits, or what ARGS="model=conformer ..." says
	$(BIN)/python -m speechtrain $(ARGS)

test: $(INSTALLED) ## the tests of five minutes
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) -m 'not slow and not long' $(ARGS)

test-all: $(INSTALLED) ## all tests but those of test-slow; what CI runs
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) $(ARGS)

test-slow: $(INSTALLED) ## the tests that take minutes each
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow $(ARGS)

test-gpu: $(INSTALLED) ## the tests that need an NVIDIA GPU
	SPEECHTRAIN_TEST_GPU=1 $(BIN)/python -m pytest tests/unit/backends/test_cuda.py $(ARGS)

ui: $(RUN_INSTALLED) ## MLflow on the runs of this folder; ARGS="port=5001"
	$(BIN)/python -m speechtrain.ui $(ARGS)

screenshots: $(INSTALLED) $(RECORDED) ## docs/images anew, with Chromium (apt-get install chromium chromium-driver)
	mkdir -p docs/images
	SPEECHTRAIN_SCREENSHOTS=$(CURDIR)/docs/images OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 0 tests/integration/test_browser.py

# A terminal, some seconds; anew only if what is typed there changes
$(RECORDED): docs/site/session.sh | $(INSTALLED)
	$(UV_INSTALL) --group recording
	$(BIN)/python docs/site/record.py $< $@

docs: $(DOCS_INSTALLED) ## the site in build/docs/site, of README.md, docs/ and the pages beside them; a dead link is an error
	$(BIN)/python docs/site/stage.py build/docs
	cd build/docs && $(CURDIR)/$(BIN)/zensical build --strict --clean

reference: $(INSTALLED) ## docs/reference anew, from the comments of conf/ and the schemas
	$(BIN)/python -m speechtrain.app.reference docs/reference

lint: $(INSTALLED) ## style, types, which room may import which, and the files that other tools read
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/check-jsonschema --quiet --builtin-schema vendor.citation-file-format CITATION.cff
	$(BIN)/check-jsonschema --quiet --builtin-schema vendor.github-issue-config .github/ISSUE_TEMPLATE/config.yml
	$(BIN)/check-jsonschema --quiet --builtin-schema vendor.github-issue-forms .github/ISSUE_TEMPLATE/bug.yml .github/ISSUE_TEMPLATE/feature.yml
	$(BIN)/check-jsonschema --quiet --builtin-schema vendor.github-workflows .github/workflows/ci.yml .github/workflows/versions.yml
	$(BIN)/check-jsonschema --quiet --builtin-schema vendor.compose-spec compose.yaml
	$(BIN)/hadolint Dockerfile

format: $(INSTALLED) ## rewrite to the house style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock: $(INSTALLED) ## resolve anew into requirements.lock
	$(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 --all-extras --no-header --no-annotate --no-emit-index-url \
		--output-file requirements.lock pyproject.toml

clean: ## remove what can be made again; runs and sweeps stay
	rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache *.egg-info
