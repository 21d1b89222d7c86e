# Two commands: `make demo` and `make test`. Both make .venv on first use.
PYTHON ?= python3
BIN := .venv/bin
# Threads that spin while they wait make a busy machine many times slower.
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: demo test test-milvus test-matrix test-install bench-peers check docs build browser clean

demo: .venv/installed-demo
	$(BIN)/nexus demo --output nexus-demo

# The whole suite: style, types, tests. CI runs exactly this.
test: check test-milvus .venv/installed-runtime
	$(BIN)/python -m pytest -k 'not milvus'
	.ci/matrix 3.10-oldest 3.13-newest

# Milvus has processes of its own: Milvus Lite goes on logging to standard error of the process it
# runs in, and LlamaIndex's Milvus store wants pymilvus<3 where LangChain's wants 3. The former's
# environment finds everything else in .venv.
test-milvus: .venv/installed-milvus
	$(BIN)/python -m pytest -k milvus
	.venv/milvus/bin/python -m pytest -k milvus tests/test_llama_index_stores.py

# Both frameworks at the oldest and newest supported versions, under each version of Python that is
# here. `make test` runs the two ends of it.
MATRIX ?= $(foreach python,3.10 3.11 3.12 3.13,$(python)-oldest $(python)-newest)
test-matrix:
	.ci/matrix $(MATRIX)

# Each extra from a fresh wheel in an empty environment.
test-install:
	.ci/extras

check: .venv/installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The documentation, in site/, and the distributions, in dist/.
docs: .venv/installed-dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

build: .venv/installed-dev
	rm -rf dist
	$(BIN)/python -m build --no-isolation
	$(BIN)/twine check --strict dist/*

# The report is tested in Chromium; without one on the PATH these tests are skipped. As root on Debian
# this installs it.
browser:
	command -v chromium || (apt-get update -qq && \
		DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends chromium fonts-dejavu-core)

.venv/installed-demo: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dendrites,bundled]'
	touch $@

.venv/installed-dev: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

# The classes that benchmarks/embedding measures against, in an environment of their own.
bench-peers: .venv/installed-peers .venv/installed-bm25

.venv/installed-peers: benchmarks/peers.txt
	$(PYTHON) -m venv .venv/peers
	.venv/peers/bin/pip install --quiet --disable-pip-version-check --requirement $<
	touch $@

# What benchmarks/hybrid_speed.py measures against; everything else it finds in .venv.
.venv/installed-bm25: .venv/installed-dev
	$(PYTHON) -m venv .venv/bm25
	.venv/bm25/bin/pip install --quiet --disable-pip-version-check --no-deps \
		llama-index-retrievers-bm25 rank_bm25 bm25s pystemmer
	$(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))" \
		> "$$(.venv/bm25/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/zz_main.pth"
	touch $@

# What embeds without PyTorch; the tests marked `runtime` run there.
.venv/installed-runtime: .venv/installed-dev
	$(PYTHON) -m venv .venv/runtime
	.venv/runtime/bin/pip install --quiet --disable-pip-version-check \
		--editable '.[runtime,llama-index,langchain]'
	touch $@

.venv/installed-milvus: .venv/installed-dev
	$(PYTHON) -m venv .venv/milvus
	.venv/milvus/bin/pip install --quiet --disable-pip-version-check --no-deps \
		'llama-index-vector-stores-milvus==1.2.0' 'pymilvus>=2.6,<3'
	$(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))" \
		> "$$(.venv/milvus/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/zz_main.pth"
	touch $@

clean:
	rm -rf .venv nexus-demo build dist site
