# A login by key: privilege separation, a terminal, another user.
set -e
mkdir -p /run/sshd /root/.ssh /home/app/.ssh /etc/ssh
chmod 700 /root/.ssh /home/app/.ssh
rm -f /tmp/host /root/.ssh/id
ssh-keygen -q -t ed25519 -N '' -f /tmp/host
ssh-keygen -q -t ed25519 -N '' -f /root/.ssh/id
cp /root/.ssh/id.pub /root/.ssh/authorized_keys
cp /root/.ssh/id.pub /home/app/.ssh/authorized_keys
chown -R app:app /home/app
usermod -p '*' app 2>/dev/null || echo 'app:*:19000:0:99999:7:::' >>/etc/shadow
/usr/sbin/sshd -f /dev/null -h /tmp/host -p 2222 -o UsePAM=no -o StrictModes=no -o PidFile=/run/sshd.pid
for user in root app; do
    for command in id 'ls -l /' 'sudo -n id || true'; do
        ssh -tt -n -i /root/.ssh/id -p 2222 -o LogLevel=ERROR -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null $user@127.0.0.1 "$command" >/dev/null
    done
done
kill $(cat /run/sshd.pid)
