#!/usr/bin/env bash
# Resolves the dependencies, with hashes, for the oldest Python they have to run on:
# the VM's 3.11.2 (which needs async-timeout where 3.11.3 does not).
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")/.."

compile() {
  uv pip compile --quiet --generate-hashes --no-header --no-annotate \
    --no-emit-index-url --no-emit-find-links \
    --python-version 3.11.2 --python-platform x86_64-manylinux_2_36 "$@"
}

compile app/pyproject.toml --output-file app/requirements.txt
compile app/pyproject.toml requirements-dev.in --constraint app/requirements.txt \
  --output-file requirements-dev.txt
