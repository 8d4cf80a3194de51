# shellcheck shell=bash
# packages: what building, running and testing Baton needs from Debian 12, and how to get it.
# Sourced by deploy/quickstart and tests/run.

# To build and run.
# shellcheck disable=SC2034
BATON_BUILD_PACKAGES="build-essential pkg-config ninja-build meson libucx-dev libibverbs-dev librdmacm-dev
  libgrpc-dev libprotobuf-c-dev protobuf-c-compiler protobuf-compiler libevent-dev libssl-dev
  libnuma-dev"

# Beside those, for the tests.
# shellcheck disable=SC2034
BATON_TEST_PACKAGES="libcmocka-dev libpcre2-dev python3-venv iproute2 curl ca-certificates"

# baton_install_packages NAME...: installs what is missing, with sudo where we are not root.
baton_install_packages() {
    local missing=() p sudo=""
    for p in "$@"; do
        dpkg-query -W -f='${Status}' "$p" 2>/dev/null | grep -q 'install ok installed' || missing+=("$p")
    done
    [ ${#missing[@]} -eq 0 ] && return 0
    if ! command -v apt-get >/dev/null; then
        echo "missing: ${missing[*]}. This is no Debian: install the equivalents by hand (README, Requirements)." >&2
        return 1
    fi
    if [ "$(id -u)" -ne 0 ]; then
        if ! command -v sudo >/dev/null; then
            echo "missing packages, and neither root nor sudo to install them. As root: apt-get install ${missing[*]}" >&2
            return 1
        fi
        sudo=sudo
    fi
    echo "installing: ${missing[*]}"
    $sudo apt-get update -qq &&
        $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}
