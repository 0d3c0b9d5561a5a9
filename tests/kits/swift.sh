#!/usr/bin/env bash
# Make a Debian root with a Swift compiler in build/trixie, for tests/kits/test_swift.py: some minutes, 3 GB, as root.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)/build/trixie
command -v debootstrap > /dev/null || apt-get install -y -qq --no-install-recommends debootstrap
[ -x "$root/usr/bin/apt-get" ] || debootstrap --variant=minbase trixie "$root"
echo force-unsafe-io > "$root/etc/dpkg/dpkg.cfg.d/unsafe-io"
unshare --mount bash -c '
  mount --bind /proc "$1/proc" && mount --bind /dev "$1/dev"
  export DEBIAN_FRONTEND=noninteractive
  chroot "$1" apt-get install -y -qq --no-install-recommends swiftlang libc6-dev libstdc++-14-dev g++ git ca-certificates
  chroot "$1" swiftc --version
' swift "$root"
