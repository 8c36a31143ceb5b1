#!/usr/bin/env bash
# Builds the checkout and deploys it, or the artifact named first, with playbooks/deploy.yml.
#
#   scripts/deploy.sh [ARTIFACT] [ansible-playbook's options, such as -i inventory/mysite]
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")/.."
export PATH="$PWD/.venv/bin:$PATH"

case ${1:-} in
  '' | -*) artifact=$PWD/$(python scripts/build.py) ;;
  *)
    artifact=$(realpath "$1")
    shift
    ;;
esac
exec ansible-playbook playbooks/deploy.yml -e "release_artifact=$artifact" "$@"
