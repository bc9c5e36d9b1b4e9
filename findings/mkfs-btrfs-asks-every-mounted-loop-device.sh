#!/usr/bin/env bash
# mkfs.btrfs makes no file system anywhere while any mounted loop device has lost its file.
#
# Before it writes, mkfs.btrfs looks whether its target is mounted. For that it resolves every loop device in /proc/self/mounts to the
# file behind it, and compares. One that it cannot resolve ends it, although that device has nothing to do with the target: after a FUSE
# server was killed that provided a disk image (nbdfuse here; any user-space file system that serves images is alike), every mkfs.btrfs
# of the machine fails, also of a plain file elsewhere and with -f, until the dead mount is gone; only over a btrfs it still works. mkfs.ext4
# and mkfs.xfs do not ask.
#
# Seen: btrfs-progs 6.2-1+deb12u2 (Debian 12), e2fsprogs 1.47.0, xfsprogs 6.1.0, libnbd 1.14.2, Linux 6.18:
#   ERROR: cannot check mount status of target: Transport endpoint is not connected
# Exit status 1. With the server alive, and after the dead file system was unmounted, the same command succeeds.
#
# Needs root, Debian 12's packages, and loop devices. Everything is mounted in a mount namespace of its own. Nothing of PinKit is used.
# Exit: 0 as stated; 1 no longer as stated; 77 cannot be seen here.
set -euo pipefail

version=6.2-1+deb12u2
cannot() { echo "cannot be seen here: $*"; exit 77; }
[ "$(id -u)" = 0 ] || cannot "root is needed"
[ -e /dev/loop-control ] && [ -e /dev/fuse ] || cannot "there are no loop devices, or no FUSE"
if [ -z "${IN_OWN_NAMESPACE-}" ]; then
  exec env IN_OWN_NAMESPACE=1 unshare --mount --propagation private "$0"
fi

folder=$(mktemp -d)
cd "$folder"
device= server=
leave() {
  cd /
  umount -l "$folder/files" 2> /dev/null || true
  [ -z "$device" ] || losetup --detach "$device" 2> /dev/null || true
  [ -z "$server" ] || kill -9 "$server" 2> /dev/null || true
  umount -l "$folder/disk" 2> /dev/null || true
  rm -rf "$folder"
}
trap leave EXIT

missing=()
for need in nbdkit:nbdkit nbdfuse:libnbd-bin mkfs.ext4:e2fsprogs mkfs.xfs:xfsprogs; do
  command -v "${need%%:*}" > /dev/null || missing+=("${need##*:}")
done
{ apt-get update -q && apt-get install -qy --no-install-recommends "${missing[@]}"; } > log 2>&1 || cannot "packages: $(tail -1 log)"
apt-get download "btrfs-progs=$version" > log 2>&1 || cannot "there is no btrfs-progs $version"
dpkg -x btrfs-progs_*.deb programs
mkfs=$folder/programs/bin/mkfs.btrfs
[ -x "$mkfs" ] || mkfs=$folder/programs/sbin/mkfs.btrfs
"$mkfs" --version > version 2>&1 || cannot "$(cat version)"

# A disk image that a process serves, a loop device on it, and a file system on that.
: > disk
nbdfuse disk --command nbdkit -s memory 64M > log 2>&1 &
server=$!
until [ -s disk ]; do
  kill -0 "$server" 2> /dev/null || cannot "nbdfuse: $(cat log)"
  sleep 0.1
done
device=$(losetup --find --show disk) || cannot "no loop device is to be had"
mkfs.ext4 -q -F "$device"
mkdir files
mount "$device" files

failed=0
expect() {  # expect STATUS TEXT COMMAND…
  local status=$1 text=$2 found=0 output
  shift 2
  output=$("$@" 2>&1) || found=$?
  echo "$*: exit status $found${output:+, \"$(tail -1 <<< "$output")\"}"
  if [ "$found" != "$status" ] || { [ -n "$text" ] && [[ $output != *"$text"* ]]; }; then failed=1; fi
}

fresh() { rm -f target; truncate -s 512M target; }

cat version
truncate -s 512M ext4 xfs
echo "The image is served:"
fresh
expect 0 '' "$mkfs" -q -f target
kill -9 "$server"
wait "$server" 2> /dev/null || true
# What the kernel remembers of the file is asked for a second more.
until [ ! -e disk ]; do sleep 0.1; done
echo "Its server was killed:"
expect 0 '' "$mkfs" -q -f target  # over the btrfs that is there
fresh
expect 1 'cannot check mount status of target: Transport endpoint is not connected' "$mkfs" -q -f target
expect 0 '' mkfs.ext4 -q -F ext4
expect 0 '' mkfs.xfs -q -f xfs
umount -l files
echo "The dead file system is unmounted:"
fresh
expect 0 '' "$mkfs" -q -f target

if [ "$failed" = 0 ]; then echo "as stated"; else echo "no longer as stated"; fi
exit "$failed"
