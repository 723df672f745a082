# A Rust program by Debian's cargo.
set -e
cd /tmp && USER=root cargo new --quiet noise --vcs none && cd noise
cargo build --quiet --offline --release && cargo test --quiet --offline && test "$(cargo run --quiet --offline)" = 'Hello, world!'
