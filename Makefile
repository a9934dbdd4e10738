# make run     set up what is missing, then serve the metrics of this machine's guests on port 9177
# make test    set up what is missing, then run every check and test (live tests need root or sudo)
# make screenshots, make dashboards-schema    pictures and a check of the dashboards; for developers, with Node.js
#
# PYTHON=python3.12   the interpreter for .venv (default: python3)
# ARGS='...'          for run: flags of 'virtgauge exporter'; for test, soak: arguments of pytest
# WORKERS=1           for test: processes that run test files side by side (default: 2; live tests mostly wait)
PYTHON ?= python3
WORKERS ?= 2
ARGS ?=
export PYTHON

# The live tests make namespaces, which takes root.
AS_ROOT := $(shell [ "$$(id -u)" = 0 ] || echo sudo --preserve-env=HOME,XDG_CACHE_HOME)
PYTEST := $(AS_ROOT) .venv/bin/python -B -m pytest
NODE := grafana/screenshots
COMPILE := .state/lock/bin/pip-compile --quiet --allow-unsafe --generate-hashes --strip-extras --no-header \
	--no-emit-options --no-annotate

.PHONY: run test lint setup soak bench screenshots dashboards-schema lock clean

run:
	@setup/install run
	@.venv/bin/python -m exporter.demonstration $(ARGS)

test:
	@setup/install test
	@$(MAKE) --no-print-directory lint
	$(PYTEST) -m "not soak" -n $(WORKERS) --dist loadfile $(ARGS)

lint:
	@setup/install run
	.venv/bin/ruff check .
	.venv/bin/mypy

setup:
	@setup/install test

soak:
	@setup/install test
	$(PYTEST) -m soak --timeout=0 $(ARGS)

bench:
	@setup/install test
	@for script in tests/benchmarks/bench_*.py; do \
		[ -e "$$script" ] || { echo "make bench: there is no tests/benchmarks/bench_*.py"; exit 1; }; \
		$(AS_ROOT) .venv/bin/python -B "$$script" $(ARGS) || exit 1; \
	done

# Pictures of the dashboards in docs/pictures, from real guests at work; ARGS='--minutes 30'. Needs Node.js 20 and npm,
# and Debian's chromium. No part of 'make test'.
screenshots: $(NODE)/node_modules/.package-lock.json
	@command -v chromium >/dev/null || { echo "make screenshots: install Debian's package chromium"; exit 1; }
	@setup/install test
	$(AS_ROOT) .venv/bin/python -B -m grafana.screenshots $(ARGS)

# The dashboards against JSON Schema made from Grafana's own types.
dashboards-schema: $(NODE)/node_modules/.package-lock.json
	node $(NODE)/check-schema.mjs

# Not npm ci: it refuses a lock without the builds for other systems, which npm leaves out where it writes one here.
$(NODE)/node_modules/.package-lock.json: $(NODE)/package-lock.json
	cd $(NODE) && npm install --no-save

# Renews requirements.lock and setup/build.lock; --no-emit-options keeps index addresses out of them.
# It has an environment of its own, since the project's cannot be set up while its lock is out of date.
lock:
	$(PYTHON) -m venv .state/lock
	.state/lock/bin/python -m pip --disable-pip-version-check install --quiet pip-tools
	$(COMPILE) $(ARGS) --output-file setup/build.lock setup/build.in
	$(COMPILE) $(ARGS) --all-extras --output-file requirements.lock pyproject.toml setup/build.in

clean:
	rm -rf .venv .state build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
