# `make help` explains every target.
.DEFAULT_GOAL := help
SHELL := /bin/bash
.ONESHELL:
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS += --no-print-directory

PYTHON := .venv/bin/python
export PATH := $(CURDIR)/.venv/bin:$(PATH)

.PHONY: help
help: ## Explain every target
	@echo "BTC tap trading. From nothing to a running site: make up. Every test: make test."
	@echo
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# The environment of tools: remade whenever the lock changes.
.venv/.locked: requirements-dev.txt
	@scripts/prerequisites.sh base
	@echo "==> installing the tools of requirements-dev.txt into .venv"
	@$(PYTHON) -m pip --version >/dev/null 2>&1 || { rm -rf .venv; python3 -m venv .venv; }
	@$(PYTHON) -m pip install --quiet --disable-pip-version-check "$$(sed -n 's/^\(uv==[^ ]*\).*/\1/p' requirements-dev.txt)"
	@.venv/bin/uv pip sync --quiet --python $(PYTHON) requirements-dev.txt
	@$(PYTHON) -m ensurepip >/dev/null
	@touch $@

.PHONY: up
up: .venv/.locked ## From a bare machine to the running site (local VM); again: changes nothing
	@scripts/up.sh

.PHONY: down
down: ## Remove the local VM with everything on it
	@scripts/vm.sh down

.PHONY: ssh
ssh: ## Log in to the local VM
	@scripts/vm.sh ssh tap-vm

.PHONY: logs
logs: ## Follow the journals of the site's units on the local VM
	@scripts/vm.sh ssh tap-vm -t sudo journalctl --lines 50 --follow --output cat \
	  --unit "'tap-trading-*'" --unit nginx --unit redis-server

.PHONY: status
status: .venv/.locked ## Show release, units, health, disk and backups of the local VM
	@ansible-playbook playbooks/status.yml

.PHONY: dev
dev: .venv/.locked ## Run all services on this host, without a VM, against a scratch Redis and database
	@scripts/prerequisites.sh redis
	@$(PYTHON) scripts/dev.py

.PHONY: keys
keys: .venv/.locked ## Make the first key that signs releases, unless it is there
	@$(PYTHON) scripts/release_keys.py

.PHONY: backup-key
backup-key: .venv/.locked ## Print a new key to encrypt backups with; nothing is stored
	@PYTHONPATH=app/src $(PYTHON) -m tap_trading.cli.main backup-key

.PHONY: build
build: .venv/.locked ## Build the release artifact of the checkout into dist/
	@$(PYTHON) scripts/build.py

.PHONY: deploy
deploy: .venv/.locked ## Build the checkout and deploy it to the local VM
	@scripts/deploy.sh

.PHONY: images
images: build ## Build one container image per service from the artifact
	@scripts/prerequisites.sh vm
	@scripts/images.sh

.PHONY: check
check: .venv/.locked ## Quick tier: format, lint, types, security, architecture, unit tests
	@scripts/build-gate.sh
	@scripts/test-gate.sh unit

.PHONY: test
test: .venv/.locked ## Every test: the quick tier, integration, browser, and the whole machine
	@scripts/build-gate.sh
	@scripts/test-gate.sh all

.PHONY: test-long
test-long: .venv/.locked ## The fault tests at length: hundreds of kills, thousands of power cuts
	@scripts/prerequisites.sh redis
	@pytest --quiet tests/faults --long --junit-xml=reports/faults.xml

.PHONY: bench
bench: .venv/.locked ## Benchmarks, as ratios to a baseline taken in the same run
	@scripts/prerequisites.sh redis
	@mkdir -p reports
	@PYTHONPATH=app/src:tests $(PYTHON) -m bench >reports/bench.txt || { cat reports/bench.txt; exit 1; }
	@cat reports/bench.txt

.PHONY: bench-deploy
bench-deploy: .venv/.locked ## Deploy and roll back the local VM under load, beside the limits for it
	@PYTHONPATH=app/src:tests $(PYTHON) -m bench.deploys

.PHONY: fairness
fairness: .venv/.locked ## Whether the rates are fair, on FILES="a.csv b.csv" too: words and pictures
	@[ -n "$(strip $(FILES))" ] || { echo 'fairness: name recordings (CSV, ts_ms and price): make fairness FILES="a.csv b.csv"' >&2; exit 2; }
	@for file in $(FILES); do [ -r "$$file" ] || { echo "fairness: cannot read $$file" >&2; exit 2; }; done
	@PYTHONPATH=app/src:tests $(PYTHON) -m fairness $(FILES)

.PHONY: format
format: .venv/.locked ## Format the Python sources
	@ruff format --quiet .
	@ruff check --quiet --fix .

.PHONY: docs
docs: .venv/.locked ## Write docs/settings.md and docs/variables.md anew from the code
	@$(PYTHON) scripts/reference.py

.PHONY: lock
lock: .venv/.locked ## Resolve the dependencies anew (app/requirements.txt, requirements-dev.txt)
	@scripts/lock.sh

.PHONY: clean
clean: ## Remove what builds and tests made (not the VM and not .venv)
	@rm -rf dist reports .cache .dev .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage*
