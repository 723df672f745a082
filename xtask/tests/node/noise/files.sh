# File work on the overlay: owners, modes, attributes, links, archives.
set -e
mkdir /files && cd /files
for n in $(seq 300); do echo $n >f$n; chmod 640 f$n; chown 1000:1000 f$n; mv f$n g$n; ln g$n h$n; ln -s g$n s$n; done
tar --create --xattrs --file /tmp/a.tar . && mkdir /again && tar --extract --xattrs --same-owner --file /tmp/a.tar -C /again
cp -a /files /copy && diff -r /files /copy
setfattr -n user.noise -v 1 g1 && getfattr -d g1 >/dev/null
setfattr -n trusted.noise -v 1 g1 2>/dev/null || true
setfacl -m u:app:r g2 2>/dev/null || true
setcap cap_net_bind_service+ep g3 2>/dev/null || true
mkfifo fifo; mknod null c 1 3 2>/dev/null || true; truncate -s 1G sparse; fallocate -l 1M full; sync
chattr +i g4 2>/dev/null || true
rm -rf /files/* /copy /again
touch /usr/bin/env; mv /etc/hosts /etc/hosts2; cp /etc/hosts2 /etc/hosts
su app -c 'cd && for n in $(seq 100); do echo $n >f$n; done; rm f*'
