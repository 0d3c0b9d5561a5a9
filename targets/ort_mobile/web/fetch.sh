#!/usr/bin/env bash
# What the page needs to run a bundle in a browser, from npm: onnxruntime-web, a tokenizer and a template engine. 14 MB in DIR.
# usage: fetch.sh DIR
set -euo pipefail
out=$1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
sums=$(realpath "$(dirname "$0")/fetch.sha256")
(cd "$work" && npm pack --silent onnxruntime-web@1.30.0 @huggingface/tokenizers@0.2.0 @huggingface/jinja@0.5.11 > /dev/null && sha256sum --quiet -c "$sums")
mkdir -p "$work/web"
take() {
  tar xzf "$work/$1" -C "$work" "package/$2" && mv "$work/package/$2" "$work/web/$3"
}
take onnxruntime-web-1.30.0.tgz dist/ort.wasm.min.mjs ort.mjs
take onnxruntime-web-1.30.0.tgz dist/ort-wasm-simd-threaded.mjs ort-wasm-simd-threaded.mjs
take onnxruntime-web-1.30.0.tgz dist/ort-wasm-simd-threaded.wasm ort-wasm-simd-threaded.wasm
take huggingface-tokenizers-0.2.0.tgz dist/tokenizers.min.mjs tokenizers.mjs
take huggingface-jinja-0.5.11.tgz dist/index.js jinja.mjs
mkdir -p "$(dirname "$out")"
rm -rf "$out"
mv "$work/web" "$out"
