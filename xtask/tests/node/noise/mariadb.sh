# A database with threads, on files that bypass the cache.
set -e
mkdir -p /var/lib/mysql /run/mysqld && chown mysql:mysql /var/lib/mysql /run/mysqld
mariadb-install-db --user=mysql --datadir=/var/lib/mysql --skip-test-db >/dev/null
mariadbd --user=mysql --datadir=/var/lib/mysql --socket=/run/mysqld/s --memlock 2>/dev/null &
for try in $(seq 100); do mariadb-admin --socket=/run/mysqld/s ping >/dev/null 2>&1 && break; sleep 0.1; done
mariadb --socket=/run/mysqld/s -e 'create database a; create table a.t(i int); insert into a.t values (1), (2); select sum(i) from a.t'
mariadb-admin --socket=/run/mysqld/s shutdown
wait
