#!/bin/sh
# In the guest: the host's tree once more, with a cache and an overlay in memory in front of it, and $2 run in it.
# What virtme-ng mounts has no cache, and each import would ask the host for every file again.
#   enter.sh OUT COMMAND: OUT is the one folder that the host sees changes of
set -eu
out=$1
mkdir -p /run/host /run/memory /run/root
mount -t 9p -o trans=virtio,version=9p2000.L,cache=loose,msize=512000,access=any,ro tree /run/host
mount -t tmpfs -o size=1200m none /run/memory
mkdir -p /run/memory/upper /run/memory/work
mount -t overlay -o lowerdir=/run/host,upperdir=/run/memory/upper,workdir=/run/memory/work none /run/root
for folder in proc sys dev run; do
    mkdir -p "/run/root/$folder"
    mount --rbind "/$folder" "/run/root/$folder"
done
mkdir -p "/run/root$out"
mount --bind "$out" "/run/root$out"
exec chroot /run/root /bin/sh -c "$2"
