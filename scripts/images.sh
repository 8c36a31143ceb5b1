#!/usr/bin/env bash
# Builds one container image per service from dist/latest.tar.gz and prints their names.
#
#   scripts/images.sh                 api, ws, price, resolver and tap
#   scripts/images.sh api tap         only these
#
# BASE is the image to build on; unless given it is the bare machine's own
# (scripts/vm.sh image). PREFIX (localhost/tap-trading) starts the images' names.
set -euo pipefail

cd "$(dirname "$(readlink -f "$0")")/.."
export CONTAINERS_CONF="$PWD/containers.conf"

readonly ARTIFACT=dist/latest.tar.gz
prefix=${PREFIX:-localhost/tap-trading}
base=${BASE:-}

die() { printf '%s\n' "images: $*" >&2; exit 1; }

# The image of the bare machine belongs to root's Podman.
as_root=()
[ "$(id -u)" -eq 0 ] || as_root=(sudo --preserve-env=CONTAINERS_CONF)
podman() { "${as_root[@]}" "$(type -P podman)" "$@"; }

readonly known=(api ws price resolver tap)
services=("$@")
[ "$#" -gt 0 ] || services=("${known[@]}")
for service in "${services[@]}"; do
  [[ " ${known[*]} " == *" $service "* ]] || die "there is no service $service; choose from: ${known[*]}"
done
[ -f "$ARTIFACT" ] || die "there is no $ARTIFACT; build it with: make build"
type -P podman >/dev/null || die "podman is missing; install it: apt-get install podman"

work=$(mktemp -d)
# What has a name stays; the stage it was copied from and what had the name before do not.
trap 'rm -rf "$work"; podman image prune --force --filter label=tap-trading.image=true >/dev/null' EXIT
mkdir "$work/release"
tar --extract --gzip --file "$ARTIFACT" --directory "$work/release" 2>"$work/log" ||
  die "$ARTIFACT is not a whole artifact ($(tail -n 1 "$work/log")); build it anew with: make build"
(cd "$work/release" && sha256sum --quiet --check checksums.sha256) >"$work/log" 2>&1 ||
  die "$ARTIFACT does not match its checksums ($(head -n 1 "$work/log")); build it anew with: make build"

field() { sed -n "s/^  \"$1\": \"\(.*\)\",\{0,1\}\$/\1/p" "$work/release/manifest.json"; }
version=$(field version)
time=$(field build_time)

if [ -z "$base" ]; then
  scripts/vm.sh image >&2
  base=localhost/tap-vm:bookworm
fi

for service in "${services[@]}"; do
  image=$prefix-$service:${version//+/_}
  podman build --quiet --file Containerfile --target "$service" --tag "$image" \
    --build-arg "BASE=$base" --build-arg "VERSION=$version" \
    --build-arg "REVISION=$(field git_commit)" \
    --build-arg "CREATED=${time:0:4}-${time:4:2}-${time:6:2}T${time:8:2}:${time:10:2}:${time:12:2}Z" \
    "$work/release" >"$work/log" 2>&1 || {
    tail -n 20 "$work/log" >&2
    die "$image could not be built; podman's words are above"
  }
  printf '%s\n' "$image"
done
