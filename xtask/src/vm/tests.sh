# For each mechanism the tests that belong to it, each in a process of its own, so that one that hangs or dies takes
# no other with it. A mechanism's first test says whether the kernel offers it; if not, the others are left out.
. /vm/settings

export USERNS_NODE_TESTS=1 USERNS_AGENT_BIN=/vm/userns-agent RUST_BACKTRACE=0
export USERNS_NODE_DIR=/var/lib/node USERNS_RUNTIMES=/opt/runtimes USERNS_NODE_SLOWDOWN="$SLOWDOWN"
export USERNS_CONTAINERD=/opt/containerd
export USERNS_NODE_CELLS=/run/cells USERNS_ACTOR=/vm/actor
mkdir -p "$USERNS_NODE_CELLS"
failed=0
case " $WITH_CONTAINERD " in
    *" $(uname -r) "*) SUITE_DEFAULT="$SUITE_DEFAULT $SUITE_CONTAINERD" ;;
esac

run_test() {
    echo "userns-vm: begin $2"
    timeout -s KILL "$TEST_LIMIT" "/vm/$1" --exact "$2" --test-threads=1 --nocapture
    status=$?
    # On a line of its own, whatever the test wrote last.
    printf '\nuserns-vm: end %s %s\n' "$2" "$status"
    [ "$status" = 0 ] || failed=1
}

cell() {
    echo "userns-vm: cell $USERNS_NODE_MECHANISM"
    for part in $1; do
        binary=${part%%:*}
        for name in $("/vm/$binary" --list --format terse "${part#*:}" | sed -n 's/: test$//p'); do
            offer=$(cat "$USERNS_NODE_CELLS/$USERNS_NODE_MECHANISM.offer" 2>/dev/null)
            [ "${offer:-own}" = own ] || return
            run_test "$binary" "$name"
        done
    done
}

for mechanism in $CELLS; do
    export USERNS_NODE_MECHANISM="$mechanism"
    if [ -n "$FILTER" ]; then
        cell "$FILTER"
    elif [ "$mechanism" = default ]; then
        cell "$SUITE_DEFAULT"
    else
        cell "$SUITE"
    fi
done
exit $failed
