#!/usr/bin/env bash
# Builds the container for real and runs it under the conditions that containers fail in:
# any user id, no usable home, no network, a read-only root file system.
#
# Needs root, buildah and debootstrap (Debian: apt-get install buildah debootstrap). The base image
# is made from the package mirror of this machine, since no image registry may be within reach;
# what pip is configured with here (mirrors, local wheels, certificates) serves the build only.
#
#   MIRROR=URL  Debian mirror            KEEP=1  keep the build folder
#   TORCH=...   PyTorch's requirement    TORCH_INDEX_URL=...  an index that has its wheels
set -euo pipefail
cd "$(dirname "$0")/.."

for tool in buildah debootstrap unshare; do
    command -v "$tool" >/dev/null \
        || { echo "$tool is missing: apt-get install buildah debootstrap util-linux" >&2; exit 2; }
done
test "$(id -u)" = 0 || { echo "making a base image needs root" >&2; exit 2; }

work=$(mktemp -d "${TMPDIR:-/var/tmp}/bmex-container.XXXXXX")
finish() {
    if test -n "${KEEP:-}"; then echo "kept: $work"; return; fi
    rm -rf --one-file-system "$work" # never into a folder of this machine that is still mounted
}
trap finish EXIT
export BUILDAH_ISOLATION=chroot
store=(--root "$work/storage" --runroot "$work/run" --storage-driver vfs)
say() { printf '\n== %s\n' "$*"; }

say "base image"
mirror=${MIRROR:-$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' | head -1)}
debootstrap --variant=minbase bookworm "$work/base" "$mirror" >"$work/debootstrap.log" \
    || { tail -20 "$work/debootstrap.log" >&2; exit 1; }
container=$(buildah "${store[@]}" from scratch)
buildah "${store[@]}" add --quiet "$container" "$work/base" / >/dev/null
buildah "${store[@]}" commit --quiet --rm "$container" localhost/bmex-base >/dev/null
rm -rf --one-file-system "$work/base"

say "build"
python3 -m pip config list \
    | sed -nE "s/^(:env:|global)\.(cert|find-links|index-url|extra-index-url)='(.*)'$/\2 = \3/p" \
    | awk -F' = ' 'BEGIN { print "[global]" } !seen[$1]++' >"$work/pip.conf"
mounts=(--volume "$work/pip.conf:/etc/pip.conf:ro")
certificates=$(sed -n 's/^cert = //p' "$work/pip.conf")
if test -n "$certificates"; then # not in its own place, which a package of the image may write
    sed -i 's|^cert = .*|cert = /etc/pip-cert.pem|' "$work/pip.conf"
    mounts+=(--volume "$certificates:/etc/pip-cert.pem:ro")
fi
while read -r path; do
    case $path in */simple) path=$(dirname "$path") ;; esac # its pages link to files beside it
    if test -d "$path"; then mounts+=(--volume "$path:$path:ro"); fi
done < <(sed -n 's/^[a-z-]* = //p' "$work/pip.conf" | tr ' ' '\n' | sed 's|^file://||' | grep '^/')
arguments=(--build-arg BASE_IMAGE=localhost/bmex-base)
for name in TORCH TORCH_INDEX_URL; do
    if test -n "${!name:-}"; then arguments+=(--build-arg "$name=${!name}"); fi
done
started=$SECONDS
buildah "${store[@]}" bud --format docker "${arguments[@]}" "${mounts[@]}" --tag localhost/bmex . \
    >"$work/build.log" 2>&1 || { tail -40 "$work/build.log" >&2; exit 1; }
echo "built in $((SECONDS - started)) s"
container=$(buildah "${store[@]}" from localhost/bmex)
root=$(buildah "${store[@]}" mount "$container")

say "size and labels"
size=$(du -s --one-file-system --block-size=1M "$root" | cut -f1)
cuda=$(buildah "${store[@]}" run "$container" -- \
    python -c 'import torch; print(torch.version.cuda or "none")')
echo "size: $size MiB, CUDA: $cuda"
if test "$cuda" = none && test "$size" -gt 2384; then # 2.5 GB
    echo "an image for the CPU is to take less than 2.5 GB" >&2; exit 1
fi
label() {
    buildah "${store[@]}" inspect --type image \
        --format "{{index .OCIv1.Config.Labels \"org.opencontainers.image.$1\"}}" localhost/bmex
}
for name in title description version licenses authors; do
    printf '%-12s %s\n' "$name" "$(label "$name")"
    test -n "$(label "$name")" || { echo "the image has no label for its $name" >&2; exit 1; }
done
version=$(buildah "${store[@]}" run "$container" -- bmex --version)
test "${version##* }" = "$(label version)" || { echo "inside is $version" >&2; exit 1; }

mkdir "$work/bids" "$work/out"
chmod 777 "$work/bids" "$work/out"

# In the container as built: any user id, a home that is not there, no network.
inside() {
    unshare --net buildah "${store[@]}" run --user 12345:12345 --env HOME=/nonexistent \
        --volume "$work/bids:/bids" --volume "$work/out:/out" "$container" -- "$@"
}

# The same with a read-only root file system, as 'docker run --read-only --tmpfs /tmp' has it;
# buildah cannot do that, so chroot does.
read_only() {
    local -a environment
    mapfile -t environment < <(buildah "${store[@]}" run "$container" -- env)
    unshare --net --mount bash -euc '
        root=$1 work=$2; shift 2
        mkdir -p "$work/root" && mount --bind "$root" "$work/root"
        mount --bind "$work/bids" "$work/root/bids" && mount --bind "$work/out" "$work/root/out"
        mount -t tmpfs tmpfs "$work/root/tmp" && mount -t proc proc "$work/root/proc"
        mount --rbind /dev "$work/root/dev"
        mount -o remount,bind,ro "$work/root"
        exec chroot --userspec=12345:12345 "$work/root" env -i "$@"
    ' _ "$root" "$work" "${environment[@]}" HOME=/nonexistent "$@"
}

for conditions in inside read_only; do
    say "$conditions: help, version, weights"
    "$conditions" bmex --help >"$work/help.txt"
    head -3 "$work/help.txt"
    "$conditions" bmex --version
    "$conditions" bmex-weights list
done

say "dataset"
inside python -c '
from pathlib import Path
from bmex_bids.evaluation.demo import make_dataset, reference_brain
make_dataset(Path("/bids"), reference_brain()[0])'

say "a GPU that is not there"
if inside bmex /bids /out participant --device cuda >"$work/cuda.txt" 2>&1; then
    echo "--device cuda succeeded without a GPU" >&2; exit 1
fi
cat "$work/cuda.txt"
grep -qi cuda "$work/cuda.txt"
if grep -q Traceback "$work/cuda.txt"; then exit 1; fi

for conditions in inside read_only; do
    say "$conditions: one participant, then group"
    out=/out/$conditions
    "$conditions" bmex /bids "$out" participant --participant-label motion
    "$conditions" bmex /bids "$out" group
    anat=$work$out/sub-motion/anat
    test -s "$anat/sub-motion_desc-enhanced_T1w.nii.gz"
    test -s "$anat/sub-motion_desc-enhanced_T1w.json"
    test -s "$work$out/sub-motion.html" && test -s "$work$out/group.html"
    ls -l "$anat"
done
echo "1 passed, 0 failed"
