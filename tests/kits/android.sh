#!/usr/bin/env bash
# Get Debian's android.jar (the interfaces of API 23) into build/android, for the tests of the Kotlin kits: 20 seconds, 16 MB.
# Bookworm and trixie do not have the package; bullseye and sid have the same one.
set -euo pipefail
out=$(cd "$(dirname "$0")/../.." && pwd)/build/android
[ ! -e "$out/android.jar" ] || exit 0
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/lists/partial" "$work/archives/partial" "$out"
for suite in bullseye sid; do
  echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian $suite main"
done > "$work/sources.list"
own=(-q -o Dir::State::Lists="$work/lists" -o Dir::Cache="$work" -o Dir::Etc::SourceList="$work/sources.list"
  -o Dir::Etc::SourceParts=/dev/null -o APT::Sandbox::User="$(id -un)")
apt-get "${own[@]}" update > /dev/null || true # where one of them is gone
(cd "$work" && apt-get "${own[@]}" download libandroid-23-java > /dev/null)
dpkg -x "$work"/libandroid-23-java_*.deb "$work"
mv "$work/usr/share/java/com.android.android-23.jar" "$out/android.jar"
