#!/usr/bin/env bash
# Test gate. `test-gate.sh unit` is the quick tier; `test-gate.sh all` is everything.
# Reports are kept in reports/.
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")/.."
export PATH="$PWD/.venv/bin:$PATH"
mkdir -p reports

step() { printf -- '--> %s\n' "$*"; }

unit() {
  step "unit tests"
  pytest --quiet tests/unit tests/templates tests/ansible --junit-xml=reports/unit.xml
}

hosted() {
  step "unit and integration tests, asyncio in debug mode, with coverage"
  rm -f .coverage .coverage.*
  PYTHONASYNCIODEBUG=1 COVERAGE_PROCESS_START="$PWD/pyproject.toml" \
    coverage run -m pytest --quiet tests/unit tests/templates tests/ansible tests/integration \
    --junit-xml=reports/integration.xml
  coverage combine --quiet
  coverage json --quiet -o reports/coverage.json
  coverage report
  python scripts/coverage_gate.py reports/coverage.json
  step "faults: kills, power cuts, full disks"
  pytest --quiet tests/faults --junit-xml=reports/faults.xml
  step "benchmark report: reports/bench.txt"
  PYTHONPATH=app/src:tests python -m bench bets | tee reports/bench.txt
  step "the page in a browser"
  pytest --quiet tests/e2e/page --junit-xml=reports/page.xml
}

case ${1:-} in
  unit)
    echo "=== Test gate: quick tier ==="
    unit
    ;;
  all)
    echo "=== Test gate ==="
    scripts/prerequisites.sh base vm redis browser
    hosted
    step "release artifact and container images"
    python scripts/build.py
    pytest --quiet tests/release --junit-xml=reports/release.xml
    step "the whole machine, from bare: molecule test"
    molecule destroy --no-command-borders
    trap 'molecule destroy --no-command-borders' EXIT
    molecule test --no-command-borders --destroy=never
    # A machine that has lived through all that is as good as a new one, and minutes faster.
    step "on the same machine, releases under load: molecule verify -s deploy"
    molecule verify --no-command-borders -s deploy
    step "and everything that goes wrong in a deploy: molecule verify -s broken"
    molecule verify --no-command-borders -s broken
    step "and a machine that is lost, from its backups: molecule verify -s restore"
    molecule verify --no-command-borders -s restore
    ;;
  *)
    echo "usage: test-gate.sh unit|all" >&2
    exit 2
    ;;
esac
echo "=== Test gate passed ==="
