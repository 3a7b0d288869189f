//! Where the peers' programs are: Debian's packages, installed, or unpacked into a directory of our own.
//!
//! Unpacked is enough: nothing of them runs but what is started here, and no service is installed.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail, ensure};

use super::Peer;

/// ZooKeeper's server and what it loads, in `usr/share/java`. The web console, which is off, would need more.
const JARS: [&str; 8] = [
    "zookeeper",
    "zookeeper-jute",
    "slf4j-api",
    "slf4j-jdk14",
    "metrics-core",
    "snappy-java",
    "netty-all",
    "commons-io",
];

/// The directories in which the programs are looked for.
#[derive(Clone, Debug)]
pub struct Packages {
    /// Where packages are unpacked.
    unpacked: PathBuf,
    /// The system's root.
    root: PathBuf,
    /// Directories of programs, separated by colons.
    path: std::ffi::OsString,
}

/// What ZooKeeper is started from.
#[derive(Clone, Debug)]
pub struct ZookeeperPrograms {
    /// The Java virtual machine.
    pub java: PathBuf,
    /// Its `-classpath`.
    pub class_path: String,
}

impl Packages {
    /// Looks in a directory of unpacked packages first, then in the system under `root`, and for Java along `path`.
    pub fn new(unpacked: &Path, root: &Path, path: &OsStr) -> Self {
        Self { unpacked: unpacked.to_owned(), root: root.to_owned(), path: path.to_owned() }
    }

    /// Whether the peer can be started. The error says what to install.
    pub fn check(&self, peer: Peer) -> anyhow::Result<()> {
        match peer {
            Peer::Zookeeper => self.zookeeper().map(drop),
            Peer::Etcd => self.etcd().map(drop),
        }
    }

    /// etcd's server. The error says what to install.
    pub fn etcd(&self) -> anyhow::Result<PathBuf> {
        self.find("usr/bin/etcd").ok_or_else(|| self.missing(Peer::Etcd, "usr/bin/etcd"))
    }

    /// ZooKeeper's server. The error says what to install.
    pub fn zookeeper(&self) -> anyhow::Result<ZookeeperPrograms> {
        let java =
            std::env::split_paths(&self.path).map(|directory| directory.join("java")).find(|java| java.is_file());
        let java = java.context("ZooKeeper needs Java, and there is none: apt-get install default-jre-headless")?;
        let jar = |name: &&str| {
            let name = format!("usr/share/java/{name}.jar");
            let found = self.find(&name).ok_or_else(|| self.missing(Peer::Zookeeper, &name))?;
            found.into_os_string().into_string().ok().context("the path of a jar is not text")
        };
        let jars = JARS.iter().map(jar).collect::<anyhow::Result<Vec<_>>>()?;
        Ok(ZookeeperPrograms { java, class_path: jars.join(":") })
    }

    fn find(&self, name: &str) -> Option<PathBuf> {
        [&self.unpacked, &self.root].into_iter().map(|root| root.join(name)).find(|path| path.exists())
    }

    fn missing(&self, peer: Peer, name: &str) -> anyhow::Error {
        let (unpacked, packages) = (self.unpacked.display(), packages(peer).join(" "));
        anyhow::anyhow!(
            "{} is not here: no {name} in {unpacked} or {}. Say --install: it fetches {packages} with apt-get and unpacks \
             them into {unpacked}; nothing is installed on the system",
            peer.name(),
            self.root.display(),
        )
    }

    /// Fetches the peer's packages as apt is set up here, and unpacks them.
    pub fn install(&self, peer: Peer) -> anyhow::Result<()> {
        std::fs::create_dir_all(&self.unpacked).with_context(|| format!("cannot make {}", self.unpacked.display()))?;
        let fetched = tempfile::Builder::new().prefix("fetched-").tempdir_in(&self.unpacked)?;
        let mut download = Command::new("apt-get");
        download.arg("download").args(packages(peer)).current_dir(fetched.path());
        run(&mut download).context("try apt-get update first")?;
        for entry in std::fs::read_dir(fetched.path())? {
            run(Command::new("dpkg").arg("-x").arg(entry?.path()).arg(&self.unpacked))?;
        }
        Ok(())
    }
}

/// The Debian packages that have what [`Packages`] looks for.
fn packages(peer: Peer) -> &'static [&'static str] {
    match peer {
        Peer::Etcd => &["etcd-server"],
        Peer::Zookeeper => &[
            "libzookeeper-java",
            "libslf4j-java",
            "libdropwizard-metrics-java",
            "libsnappy-java",
            "libnetty-java",
            "libcommons-io-java",
        ],
    }
}

fn run(command: &mut Command) -> anyhow::Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = match command.output() {
        Ok(output) => output,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => bail!("{program} is not here: this needs Debian"),
        Err(error) => return Err(error).with_context(|| format!("cannot run {program}")),
    };
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program} ended with {}: {}", output.status, said.trim());
    Ok(())
}
