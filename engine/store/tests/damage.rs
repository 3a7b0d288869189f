//! Damage is found: what a file has, or what it should have been, is never mistaken for something else.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use fastrand::Rng;
use synod_store::{DAMAGED_EXIT_STATUS, OpenError, OpenOptions, PAGE_BYTES, Pacing, Store};

/// A process that is being started has the files of its parent open, and so their locks, until it runs its own program.
fn while_nothing_is_started() -> MutexGuard<'static, ()> {
    static STARTING: Mutex<()> = Mutex::new(());
    STARTING.lock().unwrap_or_else(PoisonError::into_inner)
}

fn options() -> OpenOptions {
    OpenOptions { identity: b"cell 1".to_vec(), ..OpenOptions::default() }
}

fn snapshot(store: &mut Store) {
    let durable = store.freeze_snapshot(b"handle").write_out(&Pacing::default()).unwrap();
    store.snapshot_done(durable);
}

/// A database of two snapshots, small rows and large.
fn database(directory: &Path) -> PathBuf {
    let path = directory.join("db");
    Store::create(&path, b"cell 1").unwrap();
    let (mut store, _) = Store::open(&path, &options()).unwrap();
    for number in 0..300u32 {
        store.change().put(format!("key {number:04}").as_bytes(), &vec![1; (number as usize % 20).pow(3)]);
    }
    snapshot(&mut store);
    store.change().put(b"last", b"");
    snapshot(&mut store);
    path
}

fn flip(path: &Path, at: u64) {
    let file = fs::File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 0x40], at).unwrap();
}

fn opening(path: &Path, options: &OpenOptions) -> String {
    match Store::open(path, options) {
        Ok((_, opened)) => format!("generation {}, other {:?}", opened.generation, opened.other),
        Err(error) => error.to_string().replace(&path.display().to_string(), "DB"),
    }
}

#[test]
fn what_opening_says() {
    let _alone = while_nothing_is_started();
    let directory = tempfile::tempdir().unwrap();
    let path = database(directory.path());
    let good = fs::read(&path).unwrap();
    assert_eq!(opening(&path, &options()), "generation 4, other Some(3)");
    let older = OpenOptions { older: true, ..options() };
    assert_eq!(opening(&path, &older), "generation 3, other Some(4)");
    let foreign = OpenOptions { identity: vec![7], ..options() };
    assert_eq!(opening(&path, &foreign), "DB is another one's: its identity is [63, 65, 6c, 6c, 20, 31], not [07]");
    let held = Store::open(&path, &options()).unwrap();
    assert_eq!(opening(&path, &options()), "DB is in use");
    drop(held);

    // Generation 4 is in the second place: 1 and 2 were there from the beginning.
    flip(&path, PAGE_BYTES as u64 + 60);
    assert_eq!(opening(&path, &options()), "generation 3, other None");
    assert_eq!(opening(&path, &older), "DB has no older snapshot: its other meta block is damaged");
    flip(&path, 60);
    assert_eq!(opening(&path, &options()), "both meta blocks of DB are damaged");
    flip(&path, PAGE_BYTES as u64 + 60);
    assert_eq!(opening(&path, &options()), "generation 4, other None");

    fs::write(&path, &good[..5 * PAGE_BYTES]).unwrap();
    let said = opening(&path, &options());
    assert!(said.starts_with("DB has 5 pages, and its snapshot needs "), "{said}");
    fs::write(&path, &good[..PAGE_BYTES]).unwrap();
    assert_eq!(opening(&path, &options()), "DB is not a database");
    fs::write(&path, vec![b'x'; 9 * PAGE_BYTES]).unwrap();
    assert_eq!(opening(&path, &options()), "DB is not a database");

    // The two places exchanged: each is sound, but not there.
    let exchanged = [&good[PAGE_BYTES..2 * PAGE_BYTES], &good[..PAGE_BYTES], &good[2 * PAGE_BYTES..]].concat();
    fs::write(&path, exchanged).unwrap();
    assert_eq!(opening(&path, &options()), "both meta blocks of DB are damaged");

    let mut newer = good.clone();
    newer[8] = 2;
    let checksum = crc32c::crc32c_append(crc32c::crc32c(&[0; 4]), &newer[..PAGE_BYTES - 4]);
    newer[PAGE_BYTES - 4..PAGE_BYTES].copy_from_slice(&checksum.to_le_bytes());
    fs::write(&path, newer).unwrap();
    assert_eq!(opening(&path, &options()), "DB has format 2, and this program knows formats up to 1");

    fs::remove_file(&path).unwrap();
    assert_eq!(opening(&path, &options()), "opening, with O_DIRECT, DB");
    assert!(matches!(Store::create(directory.path(), b""), Err(OpenError::File { .. })));
}

/// In a process of its own, because that is what ends.
#[test]
fn reads_a_damaged_page() {
    let Some(path) = std::env::var_os("STORE_DAMAGED") else { return };
    let (store, _) = Store::open(Path::new(&path), &options()).unwrap();
    store.audit();
    println!("read everything");
}

#[test]
fn a_damaged_page_ends_the_process() {
    let _alone = while_nothing_is_started();
    let directory = tempfile::tempdir().unwrap();
    let path = database(directory.path());
    let (mut store, _) = Store::open(&path, &options()).unwrap();
    let pages = store.scrub().run(&Pacing::default()).unwrap();
    assert!(pages > 100);
    drop(store);
    let child = |path: &Path| {
        let mut command = std::process::Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "reads_a_damaged_page", "--nocapture"]).env("STORE_DAMAGED", path);
        command.output().unwrap()
    };
    assert!(String::from_utf8_lossy(&child(&path).stdout).contains("read everything"));
    let mut random = Rng::with_seed(3);
    let end = fs::metadata(&path).unwrap().len();
    let mut found = 0;
    while found < 10 {
        let at = random.u64(2 * PAGE_BYTES as u64..end.min(2 << 20));
        flip(&path, at);
        let scrubbed = Store::open(&path, &options()).map(|(mut store, _)| store.scrub().run(&Pacing::default()));
        if let Ok(Ok(_)) = scrubbed {
            // In a place that the newest snapshot does not use.
            assert!(child(&path).status.success());
        } else {
            found += 1;
            let output = child(&path);
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            match scrubbed {
                // A page of the set of pages: that is read by opening.
                Err(error) => assert!(matches!(error, OpenError::Damaged(_)), "{error}"),
                Ok(_) if output.status.success() => {} // a page that only the set itself uses
                Ok(scrubbed) => {
                    assert_eq!(output.status.code(), Some(DAMAGED_EXIT_STATUS), "{said}");
                    assert!(said.contains("is damaged: its checksum is"), "{said}");
                    assert!(scrubbed.unwrap_err().to_string().contains("is damaged"));
                }
            }
        }
        flip(&path, at);
    }
}
