#!/bin/busybox sh
# The first process of the virtual machine: the host's files under a layer of
# memory, a disk for the tests' own, control groups of version 2 alone.
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t devtmpfs dev /dev
while read -r module; do insmod "/modules/$module"; done < /modules/order
mkdir /host /layer /root
mount -t 9p -o trans=virtio,version=9p2000.L,ro,msize=512000,cache=loose host /host
mount -t tmpfs -o size=2g layer /layer
mkdir /layer/upper /layer/work
mount -t overlay -o lowerdir=/host,upperdir=/layer/upper,workdir=/layer/work overlay /root
mount -t proc proc /root/proc
mount -t sysfs sys /root/sys
mount -t devtmpfs dev /root/dev
mkdir -p /root/dev/pts /root/dev/shm
mount -t devpts devpts /root/dev/pts
mount -t tmpfs shm /root/dev/shm
mount -t tmpfs run /root/run
mkdir /root/tests
mount -t ext4 /dev/vda /root/tests
chmod 1777 /root/tests
mount -t cgroup2 groups /root/sys/fs/cgroup
ip link set lo up
cp /second.sh /root/run/second.sh
exec switch_root /root /bin/sh /run/second.sh
