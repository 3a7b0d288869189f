//! A replica as a process: what it prints, when it stops, and which status it leaves behind.

use std::io::Read;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use signal_hook::consts::{SIGINT, SIGTERM, SIGXFSZ};
use signal_hook::iterator::Signals;
use synod_ring::Waker;
use synod_wal::directory;

use crate::config::Config;
use crate::databases::DATABASE_FILE;
use crate::hot::{HotCore, HotError};
use crate::start::{self, FirstStart, StartError};

/// Exit statuses, so that a supervisor can tell what to do (the numbers are sysexits.h's where it has one).
pub mod exit {
    /// The configuration or the directory is refused: restarting will not help.
    pub const CONFIG: u8 = 78;
    /// The disk failed, as a rule under the log: the replica stopped at once and must not vote until the disk is seen to.
    pub const LOG_FAILED: u8 = 74;
    /// The disk has no room for what a start needs: make room, and start again. A replica that runs does not end with it.
    pub const DISK_FULL: u8 = 73;
    /// A page of the database is not what was written there; the message names it. The store ends the process with it.
    pub const DATABASE_DAMAGED: u8 = synod_store::DAMAGED_EXIT_STATUS as u8;
    /// A page of the database could not be read (SIGBUS): its file was cut short, or its disk failed.
    pub const DATABASE_UNREADABLE: u8 = 66;
    /// The system refused something a replica cannot do without (io_uring, a port).
    pub const SYSTEM: u8 = 71;
}

/// Why a replica ended.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// It did not start.
    #[error(transparent)]
    Start(#[from] StartError),
    /// It ran, and had to stop.
    #[error(transparent)]
    Hot(#[from] HotError),
    /// Signals or threads.
    #[error("{doing}: {source}")]
    System {
        /// What was being done.
        doing: &'static str,
        /// Why it failed.
        source: std::io::Error,
    },
}

impl ServeError {
    /// The status the process ends with.
    pub fn exit_code(&self) -> u8 {
        match self {
            ServeError::Start(error) => match disk_error(error) {
                Some(error) if directory::is_full(error) => exit::DISK_FULL,
                Some(_) => exit::LOG_FAILED,
                None => exit::CONFIG,
            },
            ServeError::Hot(HotError::LogFailed { .. } | HotError::DiskFailed { .. } | HotError::LogExhausted) => {
                exit::LOG_FAILED
            }
            ServeError::Hot(_) | ServeError::System { .. } => exit::SYSTEM,
        }
    }
}

/// What the disk said, if it was the disk that kept a replica from starting.
fn disk_error(error: &StartError) -> Option<&std::io::Error> {
    let is_the_disks = |error: &&std::io::Error| {
        directory::is_full(error)
            || error.raw_os_error().is_some_and(|code| code == rustix::io::Errno::IO.raw_os_error())
    };
    let mut cause: Option<&dyn std::error::Error> = Some(error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<std::io::Error>().filter(is_the_disks) {
            return Some(error);
        }
        cause = error.source();
    }
    None
}

/// How a replica's process is to behave.
#[derive(Clone, Copy, Debug)]
pub struct ServeOptions {
    /// What an empty directory means.
    pub first_start: FirstStart,
    /// Stop when standard input ends: whoever started this process has gone.
    pub stop_with_parent: bool,
}

/// From here on a panic of any thread aborts the process, in builds that unwind too (tests are built so, and what they start). To be
/// called last: what other hooks have to say of a panic, they say before.
pub fn abort_on_panics() {
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        before(panic);
        std::process::abort();
    }));
}

/// Runs one replica until it is told to stop, or cannot go on.
pub fn serve(config: &Config, options: ServeOptions) -> Result<(), ServeError> {
    if let Some(cpu) = config.pin_to_cpu {
        let pinned = core_affinity::set_for_current(core_affinity::CoreId { id: cpu });
        if !pinned {
            eprintln!("synod: cannot pin to cpu {cpu}; running unpinned");
        }
    }
    let spawn = |name: &str, watch: Box<dyn FnOnce() + Send>| {
        std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(watch)
            .map_err(|source| ServeError::System { doing: "cannot start a thread", source })
    };
    let stop = Arc::new(AtomicBool::new(false));
    let running = Arc::new(OnceLock::<Waker>::new());
    if options.stop_with_parent {
        let told = (Arc::clone(&stop), Arc::clone(&running));
        spawn(
            "parent",
            Box::new(move || {
                // Whatever ends the read, an end or an error, the other side is gone.
                while matches!(std::io::stdin().read(&mut [0; 64]), Ok(1..)) {}
                told.0.store(true, Ordering::Release);
                match told.1.get() {
                    Some(waker) => waker.wake(),
                    // Still opening, or waiting to be introduced. A start must survive being cut short anyway.
                    None => std::process::exit(0),
                }
            }),
        )?;
    }
    let place = config.dir.join(DATABASE_FILE);
    synod_store::end_on_unreadable_pages(&place, exit::DATABASE_UNREADABLE.into())
        .map_err(|source| ServeError::System { doing: "cannot watch for SIGBUS", source })?;
    // A file that may not be longer is as a full disk, an error, and not the end of the process.
    let ignored = signal_hook::flag::register(SIGXFSZ, Arc::new(AtomicBool::new(false)));
    ignored.map_err(|source| ServeError::System { doing: "cannot watch for SIGXFSZ", source })?;
    synod_store::end_on_own_panics(move || place.clone());
    abort_on_panics();
    let opened = start::open(config, options.first_start)?;
    let report = opened.report.clone();
    eprintln!(
        "synod: replica {} of cell {:032x}: recovered {} records in {} frames ({} bytes{}), all up to slot {} applied",
        config.id,
        opened.identity.cell,
        report.records,
        report.frames,
        report.bytes,
        if report.torn_tail { ", a torn tail cut off" } else { "" },
        opened.start.recovered.chosen,
    );
    if report.holes > 0 {
        let told: Vec<String> = report.lost.iter().map(ToString::to_string).collect();
        eprintln!(
            "synod: the log is damaged in {} places: {}{}. What was chosen there is fetched from the other replicas; until then, \
             this one does not count where it may have accepted something else",
            report.holes,
            told.join("; "),
            if report.holes > told.len() as u64 { "; and more" } else { "" },
        );
    }
    let mut core = HotCore::new(config, opened, Arc::clone(&stop))?;
    let waker = core.waker();
    running.get_or_init(|| waker.clone());

    let mut signals = Signals::new([SIGINT, SIGTERM])
        .map_err(|source| ServeError::System { doing: "cannot watch signals", source })?;
    spawn(
        "signals",
        Box::new(move || {
            if signals.forever().next().is_some() {
                stop.store(true, Ordering::Release);
                waker.wake();
            }
        }),
    )?;
    eprintln!("synod: serving clients on {}, replicas on {}", config.me().client, config.me().peer);
    core.run()?;
    eprintln!("synod: stopped");
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;

    use super::abort_on_panics;

    /// Set in the process that is to panic.
    const WITH_PANIC: &str = "SYNOD_TEST_PANICS";

    #[test]
    fn a_panic_of_any_thread_aborts_the_process() {
        if std::env::var_os(WITH_PANIC).is_some() {
            abort_on_panics();
            let _ = std::thread::spawn(|| panic!("as asked")).join();
            return;
        }
        let own = std::env::current_exe().expect("this program was started from somewhere");
        let alone = ["--exact", "serve::tests::a_panic_of_any_thread_aborts_the_process"];
        let ended = Command::new(own).args(alone).env(WITH_PANIC, "1").output().expect("it can be run again");
        assert_eq!(ended.status.signal(), Some(signal_hook::consts::SIGABRT), "{ended:?}");
    }
}
