#!/usr/bin/env bash
# Install what the tests of this folder run, from Debian: Slurm with munge, an ssh server, pdsh, and the tools that make
# hosts out of namespaces. Needs root. Starts no service: each test starts its own inside its own hosts.
set -euo pipefail

if ((EUID != 0)) || ! command -v apt-get >/dev/null; then
    echo "$0: needs root on Debian or a system derived from it" >&2
    exit 2
fi
packages=(slurm-wlm munge openssh-server openssh-client pdsh iproute2 procps util-linux)
if dpkg --status "${packages[@]}" >/dev/null 2>&1; then
    exit 0
fi

# Debian starts a service when its package is installed, unless this file says no. One that is there already is kept.
policy=/usr/sbin/policy-rc.d
if [[ ! -e $policy ]]; then
    trap 'rm -f "$policy"' EXIT
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
fi
apt-get update -qq
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${packages[@]}"
