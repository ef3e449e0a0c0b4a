#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The package that cpack made: unpacked into a new folder it needs nothing but glibc, knows no folder
# of the machine that built it, brings the licences of what it brings, and with an empty environment
# predicts and makes DVHs; with the CUDA module in it, that can be loaded.
# test_package.sh BUILD SOURCE WORK PET.nii.gz LABELS.nii.gz; the package is BUILD/dosemap-*.tar.gz.
set -euo pipefail
built=$(realpath "$1") source=$(realpath "$2") work=$3 pet=$4 labels=$5
package=$(ls "$built"/dosemap-*.tar.gz)
rm -rf "$work" && mkdir -p "$work/here"

fail() {
    echo "$*"
    exit 1
}

name=$(basename "$package" .tar.gz)
[[ $name =~ ^dosemap-[0-9.]+-linux-[a-z0-9_]+(-cuda)?$ ]] || fail "the package is called $name"
[ "$(stat -c %s "$package")" -lt 40000000 ] || fail "the package is large: $(ls -l "$package")"
outside=$(tar tzf "$package" | grep -v "^$name/" || true)
[ -z "$outside" ] || fail "not in the folder $name: $outside"
tar xzf "$package" -C "$work/here"
mv "$work/here" "$work/there" # nothing may depend on where it was unpacked
root=$(realpath "$work/there/$name")
alone() { # with nothing of this environment, not even PATH
    env -i "$root/bin/dosemap" "$@"
}

# What is loaded, and from where.
mapfile -t programs < <(find "$root/bin" "$root/lib" -type f \( -perm -u+x -o -name '*.so*' \))
[ ${#programs[@]} -gt 2 ] || fail "the package holds only ${programs[*]}"
glibc='^(linux-vdso|ld-linux.*|lib(c|m|dl|rt|pthread|resolv|mvec|util))\.so'
for file in "${programs[@]}"; do
    for needed in $(objdump -p "$file" | awk '$1 == "NEEDED" {print $2}'); do
        [[ $needed =~ $glibc ]] || [ -e "$root/lib/$needed" ] || fail "${file#"$root"/} needs $needed, which is not packed"
    done
    paths=$(objdump -p "$file" | awk '$1 == "RPATH" || $1 == "RUNPATH" {print $2}')
    [[ -z $paths || $paths == \$ORIGIN* ]] || fail "${file#"$root"/} looks in $paths"
done
for file in "$root/bin/dosemap" "$root"/lib/libdosemap.so "$root"/lib/dosemap/*.so; do
    [ -e "$file" ] || continue
    foreign=$(env -i /usr/bin/ldd "$file" | awk '$2 == "=>" {print $1, $3}' |
        grep -vE "$glibc" | grep -vF " $root/" || true)
    [ -z "$foreign" ] || fail "${file#"$root"/} loads from outside: $foreign"
done
named=$(grep -rlF -e "$source" -e "$built" -e /usr/local -e "$HOME/" "$root" || true)
[ -z "$named" ] || fail "these name folders of the machine that built them: $named"

# A licence for each library that is not ours.
while IFS=$'\t' read -r library owner _; do
    case $library in
        library | "(in "*) continue ;;
    esac
    [ -s "$root/share/doc/dosemap/bundled/$owner.txt" ] || fail "no licence of $library ($owner)"
done <"$root/share/doc/dosemap/bundled/bundled.tsv"
for library in "$root"/lib/*.so.*; do
    [[ $library == */libdosemap.so.* ]] ||
        grep -q "^$(basename "$library")"$'\t' "$root/share/doc/dosemap/bundled/bundled.tsv" ||
        fail "$library is not in the list of what is bundled"
done

# At work.
weights=$(alone doctor | awk '$1 == "weights" {print $2}')
[ "$weights" = "$root/share/dosemap/dosegan-constructed.safetensors.zst" ] ||
    fail "it takes the weights '$weights'"
alone predict "$pet" --labels "$labels" --overlap 0 --quiet -o "$work/dose.nii.gz"
for made in dose.nii.gz dose.json dose_dvh.tsv dose_organs.tsv; do
    [ -s "$work/$made" ] || fail "predict made no $made"
done
alone dvh "$work/dose.nii.gz" --labels "$labels" --quiet -o "$work/again"
cmp "$work/dose_dvh.tsv" "$work/again_dvh.tsv"
if [[ $name == *-cuda ]]; then
    said=$(alone doctor --json | python3 -c '
import json, sys
print(json.load(sys.stdin)["cuda"]["module"])')
    [ "$said" = "$root/lib/dosemap/libdosemap-cuda.so" ] || fail "it takes the module '$said'"
    alone doctor | grep '^CUDA' | grep -v 'cannot be loaded'
fi
oldest=$(objdump -T "${programs[@]}" 2>/dev/null | grep -oE 'GLIBC_[0-9.]+' | sort -Vu | tail -1)
echo "$name: $(stat -c %s "$package") bytes, ${#programs[@]} programs and libraries, needs $oldest"
