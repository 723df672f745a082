# Has containers run in the container: by its root, and by a user without privileges. podman's own are in /usr.
set -e
ln -s usr/lib usr/lib64 /
mkdir -p /home/user/rootfs/bin /run/user /var/tmp
install -d -o 1000 -g 1000 -m 700 /run/user/1000
echo user:x:1000:1000::/home/user:/bin/sh >>/etc/passwd
echo user:x:1000: >>/etc/group
echo user:2000:60000 | tee /etc/subuid >/etc/subgid
cp /bin/busybox /home/user/rootfs/bin
for applet in cat id sh sleep true; do ln -s busybox /home/user/rootfs/bin/$applet; done
chown -R user:user /home/user
# podman looks for netavark where there is to be no network, too
mkdir -p /etc/containers /opt/podman
ln -s /bin/true /opt/podman/netavark
cat >/etc/containers/containers.conf <<EOF
[engine]
cgroup_manager = "cgroupfs"
helper_binaries_dir = ["/opt/podman"]
EOF
cat >/bin/nested <<'EOF'
#!/bin/sh
exec podman --storage-driver=vfs "$@"
EOF
chmod +x /bin/nested
