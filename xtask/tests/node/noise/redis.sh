# A cache that forks to save itself.
set -e
mkdir -p /var/lib/redis && chown redis:redis /var/lib/redis
redis-server --user default on nopass ~* +@all --dir /var/lib/redis --daemonize yes --port 6379 >/dev/null
for try in $(seq 50); do redis-cli ping 2>/dev/null | grep -q PONG && break; sleep 0.1; done
seq 2000 | sed 's/.*/set k& &/' | redis-cli --pipe
redis-cli bgsave && redis-cli bgrewriteaof
test "$(redis-cli get k1999)" = 1999
redis-cli shutdown nosave || true
