//! What can be told of the comparison with the peers where they are not installed.

use std::ffi::OsStr;
use std::fs;
use std::path::Path;

use synod_bench::peers::{Packages, Peer, RowSpec};

fn touch(path: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(path.parent().expect("it has one"))?;
    Ok(fs::write(path, "")?)
}

fn error(result: anyhow::Result<impl Sized>) -> String {
    result.err().map_or_else(|| "no error".to_owned(), |error| format!("{error:#}"))
}

#[test]
fn what_is_missing_is_said_and_how_to_get_it() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let (unpacked, root, bin) = (dir.path().join("unpacked"), dir.path().join("root"), dir.path().join("bin"));
    let packages = Packages::new(&unpacked, &root, OsStr::new(&bin));
    let said = error(packages.check(Peer::Etcd));
    assert!(said.starts_with("etcd is not here: no usr/bin/etcd in "), "{said}");
    assert!(said.contains("Say --install: it fetches etcd-server with apt-get"), "{said}");
    let said = error(packages.check(Peer::Zookeeper));
    assert_eq!(said, "ZooKeeper needs Java, and there is none: apt-get install default-jre-headless");
    touch(&bin.join("java"))?;
    let said = error(packages.check(Peer::Zookeeper));
    assert!(said.starts_with("ZooKeeper is not here: no usr/share/java/zookeeper.jar in "), "{said}");
    assert!(said.contains("libzookeeper-java"), "{said}");
    // Half of it is not enough.
    touch(&root.join("usr/share/java/zookeeper.jar"))?;
    let said = error(packages.check(Peer::Zookeeper));
    assert!(said.contains("no usr/share/java/zookeeper-jute.jar"), "{said}");
    Ok(())
}

#[test]
fn unpacked_packages_come_before_installed_ones() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let (unpacked, root) = (dir.path().join("unpacked"), dir.path().join("root"));
    let packages = Packages::new(&unpacked, &root, OsStr::new(""));
    touch(&root.join("usr/bin/etcd"))?;
    assert_eq!(packages.etcd()?, root.join("usr/bin/etcd"));
    touch(&unpacked.join("usr/bin/etcd"))?;
    assert_eq!(packages.etcd()?, unpacked.join("usr/bin/etcd"));
    Ok(())
}

#[test]
fn rows_are_read_as_they_are_written() {
    for text in ["1x5", "1000x5", "4x8192", "1x61440"] {
        assert_eq!(text.parse::<RowSpec>().map(|row| row.to_string()), Ok(text.to_owned()));
    }
    for text in ["", "5", "x", "0x5", "1x0", "1x61441", "100001x5", "1x5x5", "-1x5"] {
        assert!(text.parse::<RowSpec>().is_err(), "{text}");
    }
}
