# dpkg and apt install what somebody has built.
set -e
build() {
    mkdir -p /tmp/$1/DEBIAN /tmp/$1/usr/share/$1
    echo $1 >/tmp/$1/usr/share/$1/data
    printf 'Package: %s\nVersion: 1\nArchitecture: all\nMaintainer: a <a@example.com>\nDescription: a\n' $1 >/tmp/$1/DEBIAN/control
    printf '#!/bin/sh\nset -e\nchown 1000:1000 /usr/share/%s/data\nchmod 4755 /usr/share/%s/data\n' $1 $1 >/tmp/$1/DEBIAN/postinst
    chmod 755 /tmp/$1/DEBIAN/postinst
    dpkg-deb --root-owner-group --build /tmp/$1 /repo/$1.deb
}
mkdir -p /repo
build one
build two
dpkg --install /repo/one.deb
cd /repo
for deb in *.deb; do
    dpkg-deb --field $deb
    printf 'Filename: ./%s\nSize: %s\nSHA256: %s\n\n' $deb $(stat -c %s $deb) $(sha256sum $deb | cut -d' ' -f1)
done >Packages
rm -f /etc/apt/sources.list.d/*
echo 'deb [trusted=yes] file:/repo ./' >/etc/apt/sources.list
apt-get update
apt-get install --yes two
test -u /usr/share/two/data
dpkg --remove one two
