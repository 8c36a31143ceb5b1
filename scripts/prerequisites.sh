#!/usr/bin/env bash
# Makes sure the programs that the targets of the Makefile call are there.
#
#   scripts/prerequisites.sh base            what every target needs
#   scripts/prerequisites.sh vm redis …      and what these need besides
#
# As root, or with a sudo that asks for nothing, what is missing is installed with
# apt-get; otherwise one sentence says what to install.
set -euo pipefail

declare -A packages=(
  [python3]=python3 [git]=git [ssh]=openssh-client [ssh-keygen]=openssh-client
  [curl]=curl [podman]=podman [runc]=runc [mmdebstrap]=mmdebstrap [netavark]=netavark
  [iptables]=iptables [redis-server]=redis-server [chromium]=chromium
)
programs_of() {
  case $1 in
    base) echo python3 git curl ;;
    vm) echo ssh ssh-keygen podman runc mmdebstrap netavark iptables ;;
    redis) echo redis-server ;;
    browser) echo chromium ;;
    *)
      echo "prerequisites: there is no group $1" >&2
      return 2
      ;;
  esac
}

missing=()
need() { [[ " ${missing[*]-} " == *" $1 "* ]] || missing+=("$1"); }

for group in "$@"; do
  programs=$(programs_of "$group")
  for program in $programs; do
    PATH=$PATH:/usr/lib/podman:/usr/sbin:/sbin command -v "$program" >/dev/null || need "${packages[$program]}"
  done
  if [ "$group" = base ] && command -v python3 >/dev/null; then
    python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
      echo "prerequisites: $(python3 --version) is too old; install Python 3.11 or newer and put it first on PATH" >&2
      exit 1
    }
    python3 -c 'import ensurepip, venv' 2>/dev/null || need python3-venv
  fi
done

[ "${#missing[@]}" -gt 0 ] || exit 0

sentence="install the missing packages and run make again: apt-get install ${missing[*]}"
if ! command -v apt-get >/dev/null; then
  echo "prerequisites: this is not Debian or Ubuntu; $sentence (or what your system calls them)" >&2
  exit 1
fi
as_root=()
if [ "$(id -u)" -ne 0 ]; then
  if ! sudo -n true 2>/dev/null; then
    echo "prerequisites: $sentence" >&2
    exit 1
  fi
  as_root=(sudo)
fi
echo "installing ${missing[*]}"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
export DEBIAN_FRONTEND=noninteractive
if ! { "${as_root[@]}" apt-get update -q && "${as_root[@]}" apt-get install -q -y --no-install-recommends "${missing[@]}"; } >"$log" 2>&1; then
  tail -n 20 "$log" >&2
  echo "prerequisites: apt-get failed (its words are above); $sentence" >&2
  exit 1
fi
