//! The committed reference pages are those that the agent would write.

use std::path::Path;

#[test]
fn pages_are_up_to_date() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs");
    let stale = userns_agent::docs::check(&dir).unwrap();
    assert!(stale.is_empty(), "out of date: {stale:?}; run `cargo xtask docs` and commit what it writes");
}
