# A database with a process for each connection.
set -e
bin=$(echo /usr/lib/postgresql/*/bin)
mkdir -p /var/lib/postgresql /var/run/postgresql && chown postgres:postgres /var/lib/postgresql /var/run/postgresql
su postgres -c "$bin/initdb -D /var/lib/postgresql/data --no-locale --encoding=UTF8 && $bin/pg_ctl -w -D /var/lib/postgresql/data -o '-c shared_buffers=32MB' start"
su postgres -c "$bin/createdb noise && $bin/pgbench -q -i noise && $bin/pgbench -c 8 -T 3 noise"
su postgres -c "$bin/pg_ctl -w -D /var/lib/postgresql/data -m fast stop"
