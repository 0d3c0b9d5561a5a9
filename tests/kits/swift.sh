#!/usr/bin/env bash
# Make a Debian root with a Swift compiler in build/trixie, for tests/kits/test_swift.py: 4 minutes, 2.8 GB, as root. It goes
# on where it was ended, and does nothing where the root is whole.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)/build/trixie
[ ! -e "$root/whole" ] || [ ! -e "$root/usr/include/sqlite3.h" ] || exit 0
command -v debootstrap > /dev/null || apt-get install -y -qq --no-install-recommends debootstrap
mkdir -p "$root"
# what is mounted goes with this namespace, however the script ends; TMPDIR is a folder that the root does not have
env -u TMPDIR unshare --mount bash -euc '
  [ -x "$1/usr/bin/apt-get" ] && [ ! -e "$1/debootstrap" ] || debootstrap --variant=minbase trixie "$1" > /dev/null
  echo force-unsafe-io > "$1/etc/dpkg/dpkg.cfg.d/unsafe-io"
  mount --bind /proc "$1/proc"
  mount --bind /dev "$1/dev"
  export DEBIAN_FRONTEND=noninteractive
  chroot "$1" dpkg --configure -a
  chroot "$1" apt-get install -y -qq --no-install-recommends swiftlang libc6-dev libstdc++-14-dev libsqlite3-dev g++ git > /dev/null
  chroot "$1" apt-get clean
  chroot "$1" swiftc --version
' swift "$root"
touch "$root/whole"
