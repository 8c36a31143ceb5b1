#!/usr/bin/env bash
# The local machine: a systemd container that plays the VM.
#
#   scripts/vm.sh up [NAME]       create it (or start it again) and wait for SSH
#   scripts/vm.sh down [NAME]     remove it with everything on it
#   scripts/vm.sh restart [NAME]  reboot it
#   scripts/vm.sh ssh [NAME] ...  log in, or run a command there
#   scripts/vm.sh status [NAME]   absent, stopped or running
#   scripts/vm.sh urls [NAME]     where its site answers on this host, HTTP and HTTPS
#   scripts/vm.sh image           build the bare machine's image unless it is there
#
# NAME is tap-vm unless given. Its 22, 80 and 443 are forwarded from 127.0.0.1:
# TAP_VM_SSH_PORT (2222), TAP_VM_HTTP_PORT (8088), TAP_VM_HTTPS_PORT (8443).
# The SSH key, its config and known_hosts lie in .vm/NAME/.
set -euo pipefail

cd "$(dirname "$(readlink -f "$0")")/.."
export CONTAINERS_CONF="$PWD/containers.conf"

readonly IMAGE=localhost/tap-vm:bookworm
action=${1:-help}
name=${2:-tap-vm}
ssh_port=${TAP_VM_SSH_PORT:-2222}
http_port=${TAP_VM_HTTP_PORT:-8088}
https_port=${TAP_VM_HTTPS_PORT:-8443}
keys=.vm/$name

say() { printf '%s\n' "vm: $*"; }
die() { printf '%s\n' "vm: $*" >&2; exit 1; }

# A systemd container with real limits needs root's Podman.
as_root=()
[ "$(id -u)" -eq 0 ] || as_root=(sudo --preserve-env=CONTAINERS_CONF)
podman() { "${as_root[@]}" "$(type -P podman)" "$@"; }

vm_state() {
  podman container inspect --format '{{.State.Status}}' "$name" 2>/dev/null || echo absent
}

build_image() {
  podman image exists "$IMAGE" && return 0
  local base scratch
  if timeout 30 podman pull --quiet debian:12 >/dev/null 2>&1; then
    base=debian:12
  else
    say "no registry answers: building the Debian 12 root file system with mmdebstrap (about 20 s)"
    base=localhost/debian-rootfs:bookworm
    scratch=$(mktemp -d)
    # shellcheck disable=SC2064  # the path as it is now
    trap "rm -rf '$scratch'" RETURN
    mmdebstrap --quiet --variant=minbase bookworm "$scratch/rootfs.tar" ||
      die "mmdebstrap failed: are Debian's packages reachable from here?"
    podman import --quiet "$scratch/rootfs.tar" "$base" >/dev/null
  fi
  say "building the bare machine's image (about 30 s)"
  local log
  log=$(mktemp)
  if ! podman build --quiet --build-arg "BASE=$base" --tag "$IMAGE" scripts/vm >"$log" 2>&1; then
    cat "$log" >&2
    rm -f "$log"
    die "the image could not be built; podman's words are above"
  fi
  rm -f "$log"
}

refuse_busy_ports() {
  local port
  for port in "$ssh_port" "$http_port" "$https_port"; do
    if (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then
      die "127.0.0.1:$port is in use; stop what listens there (ss -ltnp) or choose another port with TAP_VM_SSH_PORT, TAP_VM_HTTP_PORT or TAP_VM_HTTPS_PORT"
    fi
  done
}

make_keys() {
  mkdir -p "$keys"
  chmod 700 .vm "$keys"
  [ -f "$keys/id_ed25519" ] || ssh-keygen -q -t ed25519 -N '' -C "$name" -f "$keys/id_ed25519"
  rm -f "$keys/host_key" "$keys/host_key.pub"
  ssh-keygen -q -t ed25519 -N '' -C "$name" -f "$keys/host_key"
  printf '[127.0.0.1]:%s %s\n' "$ssh_port" "$(cut -d' ' -f1,2 "$keys/host_key.pub")" >"$keys/known_hosts"
  cat >"$keys/ssh_config" <<CONFIG
Host $name
  HostName 127.0.0.1
  Port $ssh_port
  User debian
  IdentityFile "$PWD/$keys/id_ed25519"
  IdentitiesOnly yes
  UserKnownHostsFile "$PWD/$keys/known_hosts"
  StrictHostKeyChecking yes
  LogLevel ERROR
CONFIG
}

create() {
  local seed
  seed=$(mktemp -d)
  # shellcheck disable=SC2064  # the path as it is now
  trap "rm -rf '$seed'" EXIT
  make_keys
  mkdir -p "$seed/home/debian/.ssh" "$seed/etc/ssh"
  # podman cp makes root the owner; sshd takes root's file where the user may read it.
  install -m 644 "$keys/id_ed25519.pub" "$seed/home/debian/.ssh/authorized_keys"
  install -m 600 "$keys/host_key" "$seed/etc/ssh/ssh_host_ed25519_key"
  install -m 644 "$keys/host_key.pub" "$seed/etc/ssh/ssh_host_ed25519_key.pub"
  podman create --quiet --name "$name" --hostname "$name" --systemd=always --privileged \
    --cgroupns=private \
    --publish "127.0.0.1:$ssh_port:22" --publish "127.0.0.1:$http_port:80" \
    --publish "127.0.0.1:$https_port:443" "$IMAGE" >/dev/null
  # Whatever goes wrong from here on, no half-made machine stays.
  # shellcheck disable=SC2064  # the path as it is now
  trap "rm -rf '$seed'; remove >/dev/null 2>&1" EXIT
  podman cp "$seed/etc/ssh/." "$name:/etc/ssh"
  podman cp "$seed/home/debian/.ssh" "$name:/home/debian/.ssh"
  podman start "$name" >/dev/null
  trap - EXIT
  rm -rf "$seed"
}

remove() { podman rm --force --ignore --time 5 --volumes "$name" >/dev/null; }

wait_for_ssh() {
  local deadline=$((SECONDS + 60))
  until ssh -F "$keys/ssh_config" -o ConnectTimeout=2 "$name" true 2>/dev/null; do
    [ "$SECONDS" -lt "$deadline" ] ||
      die "no SSH on 127.0.0.1:$ssh_port after 60 s; look with: podman logs $name"
    sleep 0.3
  done
}

case $action in
  up)
    state=$(vm_state)
    case $state in
      running) ;;
      absent | created | configured | initialized)
        # One that never ran was left half-made by a run that was killed.
        [ "$state" = absent ] || remove
        refuse_busy_ports
        build_image
        say "creating $name"
        create
        ;;
      *)
        say "starting $name again"
        podman start "$name" >/dev/null
        ;;
    esac
    [ -f "$keys/ssh_config" ] || die "$name runs but its key in $keys is gone; remove it first: scripts/vm.sh down $name"
    wait_for_ssh
    ;;
  down)
    remove || die "podman could not remove $name (its words are above), so its keys in $keys stay"
    rm -rf "$keys"
    ;;
  restart)
    [ "$(vm_state)" = running ] || die "$name does not run; start it with: scripts/vm.sh up $name"
    podman restart --time 30 "$name" >/dev/null
    wait_for_ssh
    ;;
  ssh)
    [ "$(vm_state)" = running ] || die "$name does not run; start it with: make up"
    shift 2 || shift $#
    exec ssh -F "$keys/ssh_config" "$name" "$@"
    ;;
  status) vm_state ;;
  urls)
    [ "$(vm_state)" = running ] || die "$name does not run; start it with: scripts/vm.sh up $name"
    printf 'http://%s\nhttps://%s\n' "$(podman port "$name" 80/tcp)" "$(podman port "$name" 443/tcp)"
    ;;
  image) build_image ;;
  *) sed -n '2,14s/^# \{0,1\}//p' "$0" ;;
esac
