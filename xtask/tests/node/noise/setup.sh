# What Debian's installer does for packages that were only unpacked.
set -e
export DEBIAN_FRONTEND=noninteractive
mkdir -p /var/lib/dpkg/info /var/lib/dpkg/updates /var/lib/dpkg/triggers /run /var/tmp /var/log /home/app /root
: >/var/lib/dpkg/status
chmod 1777 /tmp /var/tmp
cat >/etc/passwd <<EOF
root:x:0:0:root:/root:/bin/sh
www-data:x:33:33::/var/www:/usr/sbin/nologin
_apt:x:100:65534::/nonexistent:/usr/sbin/nologin
sshd:x:101:65534::/run/sshd:/usr/sbin/nologin
postgres:x:102:102::/var/lib/postgresql:/bin/sh
redis:x:103:103::/var/lib/redis:/bin/sh
mysql:x:104:104::/var/lib/mysql:/bin/sh
app:x:1000:1000::/home/app:/bin/sh
nobody:x:65534:65534::/nonexistent:/usr/sbin/nologin
EOF
sed -E 's/^([^:]*):x:[0-9]+:([0-9]+):.*/\1:x:\2:/; s/^(_apt|sshd|nobody):.*/\1:x:65534:/' /etc/passwd >/etc/group
echo 'root:*:19000:0:99999:7:::' >/etc/shadow
echo 127.0.0.1 localhost >/etc/hosts
chown app:app /home/app
ln -sf mawk /usr/bin/awk
ip link set lo up
for kind in auth account password session; do echo "$kind required pam_permit.so" >/etc/pam.d/common-$kind; done
cp /etc/pam.d/common-session /etc/pam.d/common-session-noninteractive
