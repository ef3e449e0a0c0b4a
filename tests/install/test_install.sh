#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Installs the build into a folder of its own, builds the example with find_package and with
# pkg-config, runs both and the installed program, and checks which symbols the library shows.
# test_install.sh BUILD SOURCE WORK PET.nii.gz
set -euo pipefail
build=$1 source=$2 work=$3 pet=$4
rm -rf "$work" && mkdir -p "$work"
prefix=$work/prefix

cmake --install "$build" --prefix "$prefix" >/dev/null
library=$(find "$prefix" -name 'libdosemap.so.?')
soname=$(objdump -p "$library" | awk '$1 == "SONAME" {print $2}')
[ "$soname" = "libdosemap.so.0" ] || { echo "SONAME is '$soname'"; exit 1; }

foreign=$(nm -D --defined-only "$library" | awk '{print $3}' | grep -v '^dm_' || true)
[ -z "$foreign" ] || { echo "the library shows symbols of its inside: $foreign"; exit 1; }
declared=$(grep -oE '\bdm_[a-z0-9_]+\(' "$source/host/include/dosemap.h" | tr -d '(' | sort -u)
exported=$(nm -D --defined-only "$library" | awk '{print $3}' | sort -u)
missing=$(comm -23 <(echo "$declared") <(echo "$exported"))
[ -z "$missing" ] || { echo "declared but not exported: $missing"; exit 1; }
undeclared=$(comm -13 <(echo "$declared") <(echo "$exported"))
[ -z "$undeclared" ] || { echo "exported but not declared: $undeclared"; exit 1; }

cmake -G Ninja -S "$source/tests/install" -B "$work/cmake" -DCMAKE_PREFIX_PATH="$prefix" >/dev/null
cmake --build "$work/cmake" >/dev/null
PKG_CONFIG_PATH=$(dirname "$(find "$prefix" -name dosemap.pc)")
export PKG_CONFIG_PATH
read -ra flags <<< "$(pkg-config --cflags --libs dosemap)"
cc "$source/tests/install/predict_example.c" -o "$work/by_pkg_config" "${flags[@]}"

default=$(env -u DOSEMAP_MODEL "$prefix/bin/dosemap" doctor | awk '$1 == "weights" {print $2}')
[ "$default" = "$(realpath "$prefix/share/dosemap/dosegan-constructed.safetensors.zst")" ] ||
    { echo "the installed program takes the weights '$default'"; exit 1; }

DOSEMAP_MODEL=$(find "$prefix/share/dosemap" -name 'dosegan-16*.safetensors.zst')
export DOSEMAP_MODEL
"$work/cmake/predict_example" "$pet" 70 "$work/a.nii.gz"
LD_LIBRARY_PATH=$(dirname "$library") "$work/by_pkg_config" "$pet" 70 "$work/b.nii.gz"
"$prefix/bin/dosemap" predict "$pet" --overlap 0 -o "$work/c.nii.gz"
cmp "$work/a.nii.gz" "$work/b.nii.gz"
cmp "$work/a.nii.gz" "$work/c.nii.gz"

# Without the CUDA module the GPU is refused with a remedy; the CPU has just worked.
if [ -z "$(find "$prefix" -name 'libdosemap-cuda.so')" ]; then
    said=$("$prefix/bin/dosemap" predict "$pet" --device cuda -o "$work/d.nii.gz" 2>&1) &&
        { echo "--device cuda without a module succeeded"; exit 1; }
    grep -q '^dosemap: error: .*cuda.*; .*DOSEMAP_CUDA' <<< "$said" ||
        { echo "--device cuda without a module: $said"; exit 1; }
fi

bash -n "$prefix/share/bash-completion/completions/dosemap"
grep -q -- '--body-weight' "$prefix/share/bash-completion/completions/dosemap"
echo "installed, found, linked and run"
