# Processes, threads, shared memory, sockets and files by the interpreter.
set -e
cat >/tmp/work.py <<EOF
import asyncio, concurrent.futures as f, ctypes, multiprocessing, os, signal, socket, sqlite3, subprocess, tempfile, threading
def square(n): return n * n
if __name__ == "__main__":
    with f.ProcessPoolExecutor(4) as pool: assert sum(pool.map(square, range(200))) == 2646700
    with f.ThreadPoolExecutor(8) as pool: list(pool.map(square, range(200)))
    memory = multiprocessing.shared_memory.SharedMemory(create=True, size=1 << 20) if hasattr(multiprocessing, "shared_memory") else None
    if memory: memory.close(), memory.unlink()
    a, b = socket.socketpair(); a.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, (0).to_bytes(4, "little"))]); b.recv(1)
    db = sqlite3.connect(tempfile.mktemp()); db.execute("create table t(a)"); db.executemany("insert into t values(?)", [(n,) for n in range(1000)]); db.commit()
    async def many(): await asyncio.gather(*(asyncio.create_subprocess_exec("true") for _ in range(50)))
    asyncio.run(many())
    for act in (lambda: os.nice(-5), lambda: os.setpriority(os.PRIO_PROCESS, 0, -10), lambda: os.sched_setaffinity(0, {0}),
                lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW), lambda: os.chroot("/"), lambda: os.setuid(1000)):
        try: act()
        except OSError: pass
    try: os.kill(1, 0)
    except OSError: pass
EOF
python3 /tmp/work.py
