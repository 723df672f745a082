# A C program, built by make with several jobs, and run.
set -e
mkdir -p /src && cd /src
for n in $(seq 40); do echo "int f$n(void) { return $n; }" >f$n.c; done
{
    echo '#include <stdio.h>'; echo '#include <pthread.h>'
    echo 'static void *t(void *a) { return a; }'
    echo 'int main(void) { pthread_t p[50]; for (int i = 0; i < 50; i++) pthread_create(p + i, 0, t, 0);'
    echo 'for (int i = 0; i < 50; i++) pthread_join(p[i], 0); puts("42"); return 0; }'
} >main.c
printf 'main: main.o %s\n\t$(CC) -pthread -o $@ $^\n' "$(seq -f 'f%g.o' -s ' ' 40)" >Makefile
make -j4 CC=gcc
test "$(./main)" = 42
git init --quiet . && git -c user.name=a -c user.email=a@example.com add -A &&
    git -c user.name=a -c user.email=a@example.com commit --quiet -m a && git clone --quiet /src /clone && git -C /clone gc --quiet
perl -e 'for (1..50) { my $pid = fork // die; exit 0 unless $pid } 1 while wait > 0'
