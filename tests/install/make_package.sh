#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Builds with a preset in a folder of its own, and packs: BUILD/dosemap-*.tar.gz.
# make_package.sh SOURCE BUILD PRESET [CMake options ...]
set -euo pipefail
source=$1 build=$2 preset=$3
shift 3
cd "$source"
cmake --preset "$preset" -B "$build" "$@" >/dev/null
cmake --build "$build" -- --quiet
cd "$build"
rm -f dosemap-*.tar.gz
cpack >/dev/null
