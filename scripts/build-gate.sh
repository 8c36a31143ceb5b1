#!/usr/bin/env bash
# Build gate: format, lint, types, security and architecture. Any warning fails it.
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")/.."
export PATH="$PWD/.venv/bin:$PATH" PYTHONPATH=app/src

step() { printf -- '--> %s\n' "$*"; }

# Templates are checked as they come out, by tests/templates.
shell_scripts() {
  git ls-files --cached --others --exclude-standard | while IFS= read -r file; do
    case $file in *.j2) continue ;; esac
    if [ -f "$file" ] && head -n 1 "$file" | grep -qE '^#!.*[/ ](ba)?sh$'; then
      printf '%s\0' "$file"
    fi
  done
}

mkdir -p reports
echo "=== Build gate ==="
step "ruff: format and lint"
ruff format --quiet --check .
ruff check --quiet .
step "mypy --strict on app/"
mypy --no-error-summary
step "bandit on app/"
bandit --quiet --configfile pyproject.toml --recursive app
step "import-linter: dependencies point inwards"
lint-imports >reports/imports.txt || { cat reports/imports.txt; exit 1; }
step "shellcheck"
shell_scripts | xargs -0 shellcheck --external-sources
step "yamllint"
yamllint --strict .
step "ansible-lint, profile production"
ansible-lint -q
echo "=== Build gate passed ==="
