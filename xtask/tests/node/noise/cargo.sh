# A Rust program by Debian's cargo.
set -e
# packages are unpacked, not installed: no alternatives
export CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_LINKER=gcc
cd /tmp && USER=root cargo new --quiet noise --vcs none && cd noise
cargo build --quiet --offline --release && cargo test --quiet --offline && test "$(cargo run --quiet --offline)" = 'Hello, world!'
