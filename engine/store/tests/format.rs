//! The bytes of a small database are what they were: a change of format is seen here first.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fmt::Write as _;
use std::fs;

use synod_store::{OpenOptions, PAGE_BYTES, Pacing, Store};

/// Lines of sixteen bytes; those that are all zero are left out.
fn dump(bytes: &[u8]) -> String {
    let mut text = String::new();
    for (number, page) in bytes.chunks(PAGE_BYTES).enumerate() {
        for (line, bytes) in page.chunks(16).enumerate().filter(|(_, bytes)| bytes.iter().any(|byte| *byte != 0)) {
            write!(text, "{number} {:04x}", line * 16).unwrap();
            bytes.iter().for_each(|byte| write!(text, " {byte:02x}").unwrap());
            text.push('\n');
        }
    }
    text
}

#[test]
fn the_bytes_of_a_small_database() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("db");
    Store::create(&path, b"cell 1, replica 2").unwrap();
    let options = OpenOptions { identity: b"cell 1, replica 2".to_vec(), ..OpenOptions::default() };
    let (mut store, _) = Store::open(&path, &options).unwrap();
    store.put_plain(b"counter", b"7");
    let mut change = store.change();
    change.put(b"table/key 1", b"one");
    change.put(b"table/key 2", b"two");
    store.change().put(b"table/key 1", b"one more");
    store.change().delete(b"table/key 2");
    store.change().put(b"large", &[b'x'; 2500]);
    let durable = store.freeze_snapshot(b"slot 12").write_out(&Pacing::default()).unwrap();
    store.snapshot_done(durable);
    let bytes = fs::read(&path).unwrap();
    let found = dump(&bytes[..10 * PAGE_BYTES]);
    let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/format.golden");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(golden, &found).unwrap();
    }
    assert!(found == fs::read_to_string(golden).unwrap(), "see docs/format.md; UPDATE_GOLDEN=1 rewrites it:\n{found}");
}
