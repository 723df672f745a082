#!/usr/bin/busybox sh
# Stands before the OCI runtime whose name it is called by, and edits what containerd has it create:
# - on a machine whose unified hierarchy has no controllers, limits go, which the runtimes insist on otherwise;
# - called `ignoring`, it is a runtime that knows nothing of user namespaces.
name=${0##*/}
bundle='' create='' last=''
for word; do
    [ "$last" = --bundle ] && bundle=$word
    [ "$word" = create ] && create=1
    last=$word
done
edit() {
    # what a removal leaves behind is a comma too many
    sed -E -i -e "$1" -e 's/,([]}])/\1/g' "$bundle/config.json"
}
if [ -n "$create" ]; then
    grep -qw cpu /sys/fs/cgroup/cgroup.controllers ||
        edit 's/"(cpu|memory|pids|blockIO|hugepageLimits)":(\{[^{}]*\}|\[[^]]*\]),?//g'
    [ "$name" = ignoring ] &&
        edit 's/\{"type":"user"[^}]*\},?//; s/"(uidMappings|gidMappings)":\[[^]]*\],?//g'
fi
case $name in
    crun) exec /usr/bin/crun "$@" ;;
    *) exec /usr/sbin/runc "$@" ;;
esac
