#!/usr/bin/env bash
# Build the bundles of a pocketphi.toml, check them as a user of them would, and leave the results for the CI to show.
# Usage: build.sh [FILE [RESULTS [options of pocketphi build]]]. The tests of pocketphi itself run this on a tiny model.
set -euo pipefail
file=${1:-pocketphi.toml}
results=${2:-results}
mkdir -p "$results"

pocketphi build "$file" --junit "$results/pocketphi.xml" --results "$results/pocketphi.json" "${@:3}"

# what a release carries: every bundle whole, and its bill of materials beside it
for bundle in "$(dirname "$file")"/bundles/*/; do
  pocketphi verify "$bundle" --files-only ${POCKETPHI_PUBLIC_KEY:+--key "$POCKETPHI_PUBLIC_KEY"}
done
