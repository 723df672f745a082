# Programs started as fast as can be, orphans and daemons among them.
set -e
i=0; while [ $i -lt 1500 ]; do /bin/true; i=$((i + 1)); done
i=0; while [ $i -lt 100 ]; do (setsid sh -c 'sleep 0.05 & exec true' &) ; i=$((i + 1)); done
seq 400 | xargs -P 8 -n 1 true
sleep 0.3
