#!/usr/bin/env bash
# Build gate: format, lint, types, security and architecture. Any warning fails it.
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")/.."
export PATH="$PWD/.venv/bin:$PATH" PYTHONPATH=app/src

step() { printf -- '--> %s\n' "$*"; }

echo "=== Build gate ==="
step "ruff: format and lint"
ruff format --quiet --check .
ruff check --quiet .
step "mypy --strict on app/"
mypy --no-error-summary
step "bandit on app/"
bandit --quiet --configfile pyproject.toml --recursive app
step "import-linter: dependencies point inwards"
lint-imports --no-timings >/dev/null || lint-imports
step "shellcheck"
git ls-files -z --cached --others --exclude-standard | xargs -0 grep -lE -m1 '^#!(/usr)?/bin/(env )?(ba)?sh' | xargs shellcheck --external-sources
step "yamllint"
yamllint --strict .
step "ansible-lint, profile production"
ansible-lint --quiet
echo "=== Build gate passed ==="
