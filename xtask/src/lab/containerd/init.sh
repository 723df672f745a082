# Process 1 of containerd's namespaces. It ends, and everything here with it, when its standard input does.
busybox=/usr/bin/busybox
$busybox mkdir /applets
$busybox --install -s /applets
export PATH=/usr/sbin:/usr/bin:/applets HOME=/root LC_ALL=C
exec 3<&0 </dev/null
set -e
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount --bind /cgroup /sys/fs/cgroup
umount /cgroup
mount -t tracefs tracefs /sys/kernel/tracing
# as systemd does it: a pod can then ask for mounts that follow the node's
mount --make-rshared /
ip link set lo up

containerd --config /etc/containerd/config.toml &

# An image with one layer, as an OCI image layout: https://github.com/opencontainers/image-spec
case $(uname -m) in
    aarch64) architecture=arm64 ;;
    *) architecture=amd64 ;;
esac
mkdir -p /tmp/layout/blobs/sha256
cd /tmp/layout
# Keeps the file $1 under its digest; $digest and $size tell of it.
blob() {
    digest=$(sha256sum "$1" | cut -d' ' -f1)
    size=$(stat -c %s "$1")
    mv "$1" "blobs/sha256/$digest"
}
descriptor() {
    printf '{"mediaType": "application/vnd.oci.image.%s+json", "digest": "sha256:%s", "size": %s' \
        "$1" "$digest" "$size"
}
tar -cf layer -C /image .
blob layer
layer='{"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": "sha256:'$digest'", "size": '$size'}'
cat >config <<EOF
{"architecture": "$architecture", "os": "linux", "config": {"Env": ["PATH=/bin:/sbin:/usr/bin:/usr/sbin"],
"Cmd": ["sleep", "3600"]}, "rootfs": {"type": "layers", "diff_ids": ["sha256:$digest"]}}
EOF
blob config
cat >manifest <<EOF
{"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
"config": $(descriptor config.v1)}, "layers": [$layer]}
EOF
blob manifest
cat >index.json <<EOF
{"schemaVersion": 2, "manifests": [$(descriptor manifest.v1),
"platform": {"architecture": "$architecture", "os": "linux"},
"annotations": {"io.containerd.image.name": "localhost/busybox:1", "org.opencontainers.image.ref.name": "1"}}]}
EOF
echo '{"imageLayoutVersion": "1.0.0"}' >oci-layout
tar -cf /tmp/image.tar .
until [ -S /run/containerd/containerd.sock ]; do sleep 0.05; done
ctr --namespace k8s.io images import --local /tmp/image.tar
rm -r /tmp/layout /tmp/image.tar /image
: >/run/ready

# Waiting for one child is waiting for all of them, also those that shims leave here.
cat <&3 >/dev/null &
wait $!
