#!/usr/bin/env bash
# An aarch64 Python with onnxruntime for qemu's user mode, in one folder: nothing is installed on the machine, no root needed.
# Usage: setup.sh FOLDER. Takes Debian's packages of both architectures (apt-get download) and two wheels.
set -euo pipefail
folder=$(mkdir -p "$1" && cd "$1" && pwd)
pip=${PIP:-pip}
onnxruntime=1.32.0
numpy=2.4.6
done="$folder/.done-$onnxruntime-$numpy"
[ -e "$done" ] && exit 0

# apt with a state of its own, in which there are only aarch64 packages and none is installed
mkdir -p "$folder"/apt/{state/lists/partial,cache/archives/partial} "$folder"/{root,site,wheels,qemu}
touch "$folder/apt/state/status"
cat > "$folder/apt/conf" <<CONF
APT::Architecture "arm64";
APT::Architectures { "arm64"; };
Dir::State "$folder/apt/state";
Dir::State::status "$folder/apt/state/status";
Dir::Cache "$folder/apt/cache";
Acquire::Languages "none";
CONF
APT_CONFIG="$folder/apt/conf" apt-get update -qq
APT_CONFIG="$folder/apt/conf" apt-get install -qq -y --download-only --no-install-recommends python3.11 libstdc++6
for package in "$folder"/apt/cache/archives/*.deb; do dpkg-deb -x "$package" "$folder/root"; done
(cd "$folder/qemu" && apt-get download -qq qemu-user-static 2> /dev/null)
dpkg-deb -x "$folder"/qemu/*.deb "$folder/qemu"

$pip download --quiet --platform manylinux_2_28_aarch64 --platform manylinux_2_27_aarch64 --only-binary :all: \
  --python-version 3.11 --no-deps -d "$folder/wheels" "onnxruntime==$onnxruntime" "numpy==$numpy"
for wheel in "$folder"/wheels/*.whl; do python3 -m zipfile -e "$wheel" "$folder/site"; done
rm -rf "$folder/apt" "$folder/wheels"
touch "$done"
