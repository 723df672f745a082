# Process 1 of a container until it becomes systemd, which wants its cgroup first.
exec >/log/start 2>&1
set -ex
umount /sys/fs/cgroup
mount -t cgroup2 cgroup2 /sys/fs/cgroup
until [ -w /sys/fs/cgroup/cgroup.subtree_control ]; do sleep 0.05; done
ln -s usr/lib usr/lib64 /
mkdir -p /run /var/log /var/tmp
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /tmp
echo 0123456789abcdef0123456789abcdef >/etc/machine-id
units=/run/systemd/system
mkdir -p $units
cat >$units/lab.target <<EOF
[Unit]
Requires=basic.target lab-once.service lab-stays.service
After=basic.target lab-once.service lab-stays.service
EOF
cat >$units/lab-once.service <<EOF
[Unit]
StartLimitIntervalSec=0
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/sh -c 'sed -n s/^0:://p /proc/self/cgroup >/run/once'
EOF
cat >$units/lab-stays.service <<EOF
[Unit]
StartLimitIntervalSec=0
[Service]
Slice=lab.slice
ExecStart=/bin/sh -c 'sleep 3600 & sleep 3600'
EOF
container=oci exec /usr/lib/systemd/systemd --unit=lab.target
