#!/usr/bin/env bash
# From a bare machine to the running site, on the local VM. See `make help`.
#
# TAP_PRICE_SOURCE, TAP_REPLAY_FILE and TAP_REPLAY_SPEED choose the price source for
# this run, as they do for `make dev`.
set -euo pipefail
[ -z "${TAP_REPLAY_FILE:-}" ] || TAP_REPLAY_FILE=$(realpath "$TAP_REPLAY_FILE")
cd "$(dirname "$(readlink -f "$0")")/.."

began=$SECONDS
step() { printf '==> %s (%d s)\n' "$*" "$((SECONDS - began))"; }

step "checking what this host has"
scripts/prerequisites.sh base vm

step "building the release"
artifact=$(.venv/bin/python scripts/build.py)
echo "    $artifact"

step "starting the local VM tap-vm"
scripts/vm.sh up tap-vm

# As JSON, so that a space in a path stays inside it.
variables=$(.venv/bin/python - "release_artifact=$PWD/$artifact" \
  ${TAP_PRICE_SOURCE:+"services_price_source=$TAP_PRICE_SOURCE"} \
  ${TAP_REPLAY_FILE:+"services_replay_file=$TAP_REPLAY_FILE"} \
  ${TAP_REPLAY_SPEED:+"services_replay_speed=$TAP_REPLAY_SPEED"} \
  <<<'import json, sys; print(json.dumps(dict(word.split("=", 1) for word in sys.argv[1:])))')

step "provisioning and deploying with Ansible (what changes is shown)"
mkdir -p reports
log=reports/up.log
if ! ANSIBLE_DISPLAY_OK_HOSTS=no ANSIBLE_DISPLAY_SKIPPED_HOSTS=no \
  ansible-playbook playbooks/site.yml -e "$variables" "$@" 2>&1 | tee "$log"; then
  echo "up: Ansible stopped; its words are above and in $log. Mend the cause and run it again." >&2
  exit 1
fi
changed=$(sed -n 's/^tap-vm .*changed=\([0-9]*\) .*/\1/p' "$log")

http=http://127.0.0.1:${TAP_VM_HTTP_PORT:-8088}
https=https://127.0.0.1:${TAP_VM_HTTPS_PORT:-8443}
healthy=yes
health=$(curl --silent --fail-with-body --max-time 5 "$http/api/healthz") || healthy=no
if [ "$changed" = 0 ]; then step "done: nothing had to be changed"; else step "done: changed=$changed"; fi
echo
echo "Site:    $http/  and  $https/ (self-signed)"
echo "Health:  ${health:-the API does not answer}"
echo "Further: make status, make logs, make ssh; make down removes it"
if [ "$healthy" = no ]; then
  echo "up: the site is not healthy; look with: make status" >&2
  exit 1
fi
