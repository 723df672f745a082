# Whoever looks around in a container. What is denied to them is their loss.
ps auxf; ps -eo pid,user,label,cgroup,ns 2>&1; top -b -n 2 -d 0.1; free; vmstat; uptime; w; pgrep -a sleep; pmap 1
lsof -n; strace -f -o /tmp/strace sh -c 'ls -l / | wc -l'; strace -c true
mount; df -a; findmnt; lsblk; lscpu; lsns; lsmem; ip addr; ip route; ss -anp; ip link add dummy0 type dummy
find / -xdev -type f -newer /etc/passwd; ls -lR /proc/self /sys/kernel /etc; getcap -r /usr/bin; du -s /usr/bin
cat /proc/self/mountinfo /proc/cpuinfo /proc/meminfo /proc/1/environ /proc/1/maps /proc/1/status /proc/kallsyms /proc/modules
sysctl -a; dmesg; nice -n -5 true; renice -n -5 $$; ionice -c 1 true; chrt -f 1 true; taskset -c 0 true; prlimit --nofile=1000000 true
hostname; hostname elsewhere; date -s @1; hwclock; kill -0 1; su app -c 'ps aux; ls -l /root; cat /etc/shadow; kill -0 1; strace -p 1'
for p in /proc/[0-9]*; do readlink $p/exe $p/cwd $p/root; ls -l $p/fd $p/ns; cat $p/cmdline $p/stack $p/io; done
exit 0
