#!/usr/bin/env bash
# Installs what some tests talk to (Orthanc, DCMTK, Redis, PostgreSQL), iproute2 for networks of their own, and gcc to keep Orthanc on loopback, where that is allowed: Debian, as root.
# No service is left running: the tests start their own, on loopback and with their own folders.
set -euo pipefail

missing=()
command -v Orthanc >/dev/null || missing+=(orthanc)
compgen -G '/usr/share/orthanc/plugins/*DicomWeb*' >/dev/null || missing+=(orthanc-dicomweb)
command -v dcmdump >/dev/null || missing+=(dcmtk) # pynetdicom has a storescu, too
command -v gcc >/dev/null || missing+=(gcc libc6-dev)
command -v redis-server >/dev/null || missing+=(redis-server)
command -v ip >/dev/null || missing+=(iproute2)
command -v openssl >/dev/null || missing+=(openssl)
command -v initdb >/dev/null || compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null || missing+=(postgresql)
[ ${#missing[@]} -eq 0 ] && exit 0

if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
    echo "Tests that need ${missing[*]} will be skipped: they can be installed here only on Debian, as root."
    exit 0
fi

# Debian starts a service when its package is installed, unless this script says 101, "forbidden".
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod +x "$policy"
    trap 'rm -f "$policy"' EXIT
fi

export DEBIAN_FRONTEND=noninteractive
echo "Installing ${missing[*]} for the tests ..."
log=$(mktemp)
install() {
    apt-get -qq update && apt-get -qq install --yes --no-install-recommends "${missing[@]}"
}
if ! { install || { sleep 5; install; }; } >"$log" 2>&1; then
    tail -n 5 "$log" >&2
    echo "Tests that need ${missing[*]} will be skipped: they could not be installed."
fi
rm -f "$log"
