#!/bin/sh
# The guest's first process. What it says on the second serial port is for the runner; see watch.rs.
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sysfs /sys
# Mounted by the kernel already where it was built to do so.
/bin/busybox mount -t devtmpfs devtmpfs /dev 2>/dev/null
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
for dir in /run /tmp /dev/shm; do mount -t tmpfs tmpfs "$dir"; done
chmod 1777 /tmp /dev/shm
mount -t cgroup2 cgroup2 /sys/fs/cgroup
for controller in $(cat /sys/fs/cgroup/cgroup.controllers); do
    echo "+$controller" >/sys/fs/cgroup/cgroup.subtree_control
done
mount -t securityfs securityfs /sys/kernel/security
mount -t tracefs tracefs /sys/kernel/tracing
mount -t bpf bpf /sys/fs/bpf
for module in /vm/modules/"$(uname -r)"/*.ko; do insmod "$module"; done
ip link set lo up
hostname guest
stty -F /dev/ttyS1 raw -echo
echo "userns-vm: booted $(uname -r)" >/dev/ttyS1
# The kernel hands parameters it does not know to its first process.
case "$userns_job" in
    trial) status=0 ;;
    *) sh "/vm/$userns_job.sh" </dev/null >/dev/ttyS1 2>&1; status=$? ;;
esac
echo "userns-vm: exit $status" >/dev/ttyS1
sync
poweroff -f
