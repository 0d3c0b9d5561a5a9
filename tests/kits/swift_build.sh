#!/usr/bin/env bash
# Build kits with their tests, and the views of their examples, over the stand-ins. SwiftPM takes twice the time.
# swift_build.sh KIT...: in a folder with kit (their files), swift (the stand-ins) and main.swift. It makes out/tests, whose
# arguments are names of tests.
set -euo pipefail
mkdir -p out
c=(-Xcc -Iswift/Sources/GenAI/include -Xcc -fmodule-map-file=kit/Sources/CGenAI/include/module.modulemap)
c+=(-Xcc -fmodule-map-file=out/sqlite.modulemap)
strict=(-swift-version 6 -warnings-as-errors -I out "${c[@]}")

module() { # name, flags, files
  local name=$1
  shift
  swiftc "${strict[@]}" -parse-as-library -wmo -module-name "$name" -emit-module -emit-module-path "out/$name.swiftmodule" \
    -emit-object -o "out/$name.o" -enable-testing "$@"
}

if [ ! -e out/libGenAI.so ]; then
  echo 'module CGenAI { header "CGenAI.h" export * }' > kit/Sources/CGenAI/include/module.modulemap
  echo 'module SQLite3 { header "/usr/include/sqlite3.h" export * }' > out/sqlite.modulemap # as Apple's systems have it
  module CryptoKit -O swift/Sources/CryptoKit/*.swift # hashes whole bundles
  for name in Peer CoreML Tokenizers os SwiftUI; do module "$name" swift/Sources/"$name"/*.swift; done
  cc -shared -fPIC -O1 -Wall -Werror -Iswift/Sources/GenAI/include swift/Sources/GenAI/toy.c -o out/libGenAI.so
fi
for name in "$@"; do
  module "$name" kit/Sources/"$name"/*.swift
  swiftc "${strict[@]}" -parse-as-library -module-name "Example$name" -typecheck kit/Example/"$name"/*.swift
  module "${name}Tests" kit/Tests/"${name}Tests"/*.swift
done
# XCTest's own list of tests is not made for Swift 6
swiftc -swift-version 5 -suppress-warnings -I out "${c[@]}" -module-name Tests main.swift out/*.o -Lout -lGenAI -lsqlite3 \
  -Xlinker -rpath='$ORIGIN' -o out/tests
