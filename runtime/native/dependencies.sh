#!/usr/bin/env bash
# What building the native library needs from Debian.
#
#   dependencies.sh check            say in one line what is missing
#   dependencies.sh install          install it (as root)
#   dependencies.sh headers FOLDER   unpack ONNX Runtime's headers to FOLDER
set -euo pipefail

PACKAGES=(cmake g++ make pkg-config nlohmann-json3-dev libssl-dev libonig-dev libutf8proc-dev
          libzip-dev doctest-dev)
# Bookworm has no ONNX Runtime; this suite's headers fit every later library.
HEADERS=libonnxruntime-dev
SUITE=forky

missing() {
  command -v dpkg-query > /dev/null || return 0  # not Debian: CMake says what it does not find
  for package in "${PACKAGES[@]}"; do
    dpkg-query --show --showformat '${db:Status-Status}' "$package" 2> /dev/null |
      grep -qx installed || echo "$package"
  done
}

check() {
  local packages
  packages=$(missing | tr '\n' ' ')
  [ -z "$packages" ] && return
  echo "The native library needs Debian packages that are missing: apt-get install $packages" >&2
  exit 1
}

install() {
  local packages
  mapfile -t packages < <(missing)
  [ ${#packages[@]} -eq 0 ] && return
  apt-get update --quiet=2
  DEBIAN_FRONTEND=noninteractive apt-get install --yes --quiet=2 --no-install-recommends \
    "${packages[@]}" > /dev/null
}

# apt with one suite, in a folder of its own, so that the system's stays what it is.
private_apt() {
  apt-get -o Dir::Etc::SourceList="$work/sources" -o Dir::Etc::SourceParts=- \
    -o Dir::State::Lists="$work/lists" -o Dir::Cache="$work/cache" \
    -o APT::Sandbox::User="$(id -un)" --quiet=2 "$@"
}

headers() {
  local folder=$1 mirror
  work=$(mktemp -d)
  trap 'rm -rf "$work"' EXIT
  mkdir -p "$work/lists/partial" "$work/cache/archives/partial"
  mirror=$(apt-get indextargets --format '$(REPO_URI)' | grep -m 1 '/debian/*$')
  echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $SUITE main" \
    > "$work/sources"
  private_apt update
  (cd "$work" && private_apt download "$HEADERS")
  mkdir -p "$(dirname "$folder")"
  dpkg -x "$work"/"$HEADERS"_*.deb "$work/unpacked"
  mv "$work/unpacked" "$folder"
}

case ${1:-} in
  check | install) "$1" ;;
  headers) headers "${2:?FOLDER}" ;;
  *) sed -n '2,6s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
esac
