# Holds that the agent refuses a kernel that is too old, in one clear line.
echo "userns-vm: cell floor"
echo "userns-vm: begin floor::an_old_kernel_is_refused"
/vm/userns-agent run --output json --listen 127.0.0.1:0 >/tmp/out 2>/tmp/err
status=$?
cat /tmp/out /tmp/err
failed=0
[ "$status" = 69 ] || { echo "it ended with $status, not 69"; failed=1; }
for words in "Linux $(uname -r)" "task-local storage for tracing programs" "5.15 or newer"; do
    grep -qF "$words" /tmp/err || { echo "it does not say: $words"; failed=1; }
done
[ "$(grep -c . /tmp/err)" = 1 ] || { echo "more than one line"; failed=1; }
[ ! -s /tmp/out ] || { echo "it wrote to standard output"; failed=1; }
printf '\nuserns-vm: end floor::an_old_kernel_is_refused %s\n' "$failed"
exit $failed
