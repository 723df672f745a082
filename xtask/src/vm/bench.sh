# Measures in a guest whose clock counts instructions; see bench/guest.rs.
export USERNS_RUNTIMES=/opt/runtimes RUST_BACKTRACE=0
exec /vm/bench guest
