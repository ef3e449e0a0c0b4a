#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The CUDA module of an installation: found where it was installed, also after the folder was moved;
# shows one symbol; needs nothing of CUDA to be loaded; and without it everything else works.
# test_install_cuda.sh BUILD WORK PET.nii.gz
set -euo pipefail
build=$1 work=$2 pet=$3
rm -rf "$work" && mkdir -p "$work"
unset DOSEMAP_CUDA_MODULE

fail() {
    echo "$*"
    exit 1
}
module_of() { # the place of the module that an installed program takes
    "$1/bin/dosemap" doctor --json | python3 -c '
import json, sys
print(json.load(sys.stdin)["cuda"]["module"])'
}

cmake --install "$build" --prefix "$work/first" >/dev/null
mv "$work/first" "$work/prefix"
prefix=$work/prefix
module=$(find "$prefix" -name libdosemap-cuda.so)
case "$module" in
    "$prefix"/lib*/dosemap/libdosemap-cuda.so) ;;
    *) fail "the module is installed as '$module'" ;;
esac
found=$(module_of "$prefix")
[ "$found" = "$(realpath "$module")" ] || fail "the installed program takes the module '$found'"

shown=$(nm -D --defined-only "$module" | awk '{print $3}' | tr '\n' ' ')
[ "$shown" = "dosemap_cuda_backend " ] || fail "the module shows $shown"
needed=$(objdump -p "$module" | awk '$1 == "NEEDED" {print $2}')
if grep -E 'libcuda|libcudart|libcudnn|libnv|libdosemap' <<< "$needed"; then
    fail "the module cannot be loaded without these"
fi

# As where only the program and the library were taken along.
rm "$module"
"$prefix/bin/dosemap" doctor | grep '^CUDA'
DOSEMAP_MODEL=$(find "$prefix/share/dosemap" -name 'dosegan-16*.safetensors.zst')
export DOSEMAP_MODEL
"$prefix/bin/dosemap" predict "$pet" --overlap 0 --quiet -o "$work/dose.nii.gz"
[ -s "$work/dose.nii.gz" ] || fail "no dose map without the module"
echo "installed, found, loaded, and not needed"
