# Shows which hooks the agent finds on this kernel, then runs every test in a process of its own, so that one
# that hangs or dies takes no other with it.
. /vm/settings

hooks() {
    mkdir -p /var/lib/kubelet
    /vm/userns-agent run --output json --listen 127.0.0.1:9477 >/dev/null &
    agent=$!
    for _ in $(seq 60); do
        wget -q -O /tmp/ready http://127.0.0.1:9477/readyz 2>/dev/null && break
        kill -0 $agent 2>/dev/null || break
        sleep 1
    done
    wget -q -O - http://127.0.0.1:9477/metrics | sed -n 's/^userns_probe_state{\(.*\)} 1$/\1/p'
    kill $agent
    wait $agent
}

hooks
export USERNS_NODE_TESTS=1 USERNS_AGENT_BIN=/vm/userns-agent RUST_BACKTRACE=0
export USERNS_NODE_DIR=/var/lib/node USERNS_RUNTIMES=/opt/runtimes USERNS_NODE_SLOWDOWN="$SLOWDOWN"
export USERNS_ACTOR=/vm/actor
failed=0
for binary in node guest; do
    for test in $(/vm/$binary --list --format terse $FILTER | sed -n 's/: test$//p'); do
        echo "userns-vm: begin $test"
        timeout -s KILL "$TEST_LIMIT" /vm/$binary --exact "$test" --test-threads=1 --nocapture
        status=$?
        # On a line of its own, whatever the test wrote last.
        printf '\nuserns-vm: end %s %s\n' "$test" "$status"
        [ "$status" = 0 ] || failed=1
    done
done
exit $failed
