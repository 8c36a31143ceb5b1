#!/usr/bin/env bash
# Builds the checkout and deploys it, or the artifact named first, with playbooks/deploy.yml.
#
#   scripts/deploy.sh [ARTIFACT] [ansible-playbook's options, such as -i inventory/mysite]
set -euo pipefail
artifact=
case ${1:-} in
  '' | -*) ;;
  *)
    artifact=$(realpath "$1")
    shift
    ;;
esac
cd "$(dirname "$(readlink -f "$0")")/.."
export PATH="$PWD/.venv/bin:$PATH"

[ -n "$artifact" ] || artifact=$PWD/$(python scripts/build.py)
# As JSON, so that a space in the path stays inside it.
variables=$(python -c 'import json, sys; print(json.dumps({"release_artifact": sys.argv[1]}))' "$artifact")
exec ansible-playbook playbooks/deploy.yml -e "$variables" "$@"
