//! Making a ring: its bounds, the kernel's newest mode that works here, and a clear answer when none does.

use std::{fmt, fs, io};

use io_uring::IoUring;

/// The most operations in flight that [`Options`] may ask for.
pub const OPERATIONS_MAX: u32 = 32_768;

const SUBMISSIONS_MIN: u32 = 8;
const SUBMISSIONS_MAX: u32 = 32_768;
const COMPLETIONS_MAX: u32 = 65_536;

const _: () = assert!(OPERATIONS_MAX.next_power_of_two() <= COMPLETIONS_MAX);

/// A ring's bounds; memory for them is taken when it is made.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Places in the submission queue, rounded up to a power of two, 8 to 32768. If a turn pushes more, the ring enters
    /// the kernel early to make room: correct, but a system call more.
    pub entries: u32,
    /// Operations in flight at once, 1 to [`OPERATIONS_MAX`]. One more is the caller's bug and panics: the caller
    /// bounds its connections and buffers, this only holds it to that.
    pub operations_max: u32,
}

impl Default for Options {
    /// Enough for some hundreds of connections.
    fn default() -> Self {
        Self { entries: 256, operations_max: 2048 }
    }
}

/// The ways to set a ring up, best first. Each lower one works on older kernels and costs some interrupts or locks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Level {
    /// Completions are worked off inside our own `enter`, and nowhere else. Linux 6.1.
    Deferred,
    /// One thread submits, and is not interrupted for completions. Linux 6.0.
    SingleIssuer,
    /// Not interrupted for completions. Linux 5.19.
    Cooperative,
    /// Plain. Linux 5.17 is the oldest kernel with all that `require` asks for.
    Plain,
}

impl Level {
    pub(crate) const ALL: [Level; 4] = [Level::Deferred, Level::SingleIssuer, Level::Cooperative, Level::Plain];
}

/// How much memory the kernel takes for a ring: 64 bytes for a submission, 16 for a completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sizes {
    submissions: u32,
    completions: u32,
}

impl Sizes {
    pub(crate) fn of(options: Options) -> Self {
        let Options { entries, operations_max } = options;
        assert!((SUBMISSIONS_MIN..=SUBMISSIONS_MAX).contains(&entries), "{options:?}: entries");
        assert!((1..=OPERATIONS_MAX).contains(&operations_max), "{options:?}: operations_max");
        let submissions = entries.next_power_of_two();
        // One completion for each operation. Those for which there is no place (the waker's, a dropped ring's cancels)
        // are not lost: the kernel keeps them aside (NODROP), which is slower and nothing more.
        Self { submissions, completions: operations_max.next_power_of_two().max(submissions) }
    }

    /// For a user who may lock little memory (RLIMIT_MEMLOCK counts rings): a smaller ring does the same, entering
    /// the kernel more often and letting it keep completions aside.
    fn halved(self) -> Option<Self> {
        let submissions = (self.submissions / 2).max(SUBMISSIONS_MIN);
        let halved = Self { submissions, completions: (self.completions / 2).max(2 * submissions) };
        (halved.completions < self.completions).then_some(halved)
    }
}

/// A ring at the best level this kernel has, of the wanted size or the largest that the user may have.
pub(crate) fn ring(options: Options) -> Result<IoUring, SetupError> {
    let mut sizes = Sizes::of(options);
    let [mut level, rest @ ..] = Level::ALL;
    let mut rest = rest.into_iter();
    loop {
        let error = match ring_at(sizes, level) {
            Ok(ring) => return require(ring),
            Err(error) => error,
        };
        match error.raw_os_error() {
            Some(libc::ENOMEM) if let Some(halved) = sizes.halved() => sizes = halved,
            Some(libc::EINVAL) if let Some(next) = rest.next() => level = next,
            _ => return Err(SetupError::explain(error)),
        }
    }
}

pub(crate) fn ring_at(sizes: Sizes, level: Level) -> io::Result<IoUring> {
    let mut builder = IoUring::builder();
    builder.dontfork().setup_cqsize(sizes.completions);
    match level {
        // Submit all: an entry that the kernel refuses must not keep those behind it waiting, nor part a linked pair.
        Level::Deferred => {
            builder.setup_submit_all().setup_coop_taskrun().setup_taskrun_flag();
            builder.setup_single_issuer().setup_defer_taskrun();
        }
        Level::SingleIssuer => {
            builder.setup_submit_all().setup_coop_taskrun().setup_taskrun_flag().setup_single_issuer();
        }
        Level::Cooperative => {
            builder.setup_submit_all().setup_coop_taskrun().setup_taskrun_flag();
        }
        Level::Plain => {}
    }
    builder.build(sizes.submissions)
}

/// What the ring's code leans on, whatever the level.
fn require(ring: IoUring) -> Result<IoUring, SetupError> {
    let parameters = ring.params();
    for (present, feature) in [
        (parameters.is_feature_nodrop(), "completions that are never dropped (NODROP, Linux 5.5)"),
        (parameters.is_feature_submit_stable(), "stable submissions (SUBMIT_STABLE, Linux 5.5)"),
        (parameters.is_feature_fast_poll(), "sockets without worker threads (FAST_POLL, Linux 5.7)"),
        (parameters.is_feature_ext_arg(), "waiting with a timeout (EXT_ARG, Linux 5.11)"),
        (parameters.is_feature_skip_cqe_on_success(), "one completion a linked pair (CQE_SKIP, Linux 5.17)"),
    ] {
        if !present {
            return Err(SetupError::TooOld { feature });
        }
    }
    Ok(ring)
}

/// Why there is no ring, in words an operator can act on.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// Somebody forbids it.
    #[error("io_uring is forbidden here: {by}")]
    Blocked {
        /// Who, and what to change.
        by: BlockedBy,
        /// The kernel's answer.
        source: io::Error,
    },
    /// There is none.
    #[error(
        "there is no io_uring here: the kernel is older than 5.1 or built without CONFIG_IO_URING, \
         or a container's seccomp profile or sandbox hides it (run with seccomp=unconfined to tell)"
    )]
    Missing(#[source] io::Error),
    /// There is one, without something that cannot be done without.
    #[error("this kernel's io_uring is too old: it lacks {feature}")]
    TooOld {
        /// What is lacking, and since when there is such a thing.
        feature: &'static str,
    },
    /// The kernel has no memory for it, or its accounting says so.
    #[error(
        "no memory for an io_uring: RLIMIT_MEMLOCK is {}; raise it (ulimit -l, LimitMEMLOCK= in the systemd unit, \
         --ulimit memlock= for a container), or ask for fewer operations in flight",
        limit.map_or("unlimited".to_owned(), |bytes| format!("{} KiB", bytes / 1024))
    )]
    Memory {
        /// The process's RLIMIT_MEMLOCK in bytes; `None` is unlimited. Kernels before 5.12 count rings against it.
        limit: Option<u64>,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Anything else, such as too many open files.
    #[error("setting up an io_uring")]
    Other(#[source] io::Error),
}

/// Who forbids io_uring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockedBy {
    /// `/proc/sys/kernel/io_uring_disabled` is 1: only for CAP_SYS_ADMIN and the members of one group.
    SysctlUnprivileged,
    /// `/proc/sys/kernel/io_uring_disabled` is 2: for nobody.
    Sysctl,
    /// The kernel would allow it, so a filter in front of it does not.
    Seccomp,
}

impl fmt::Display for BlockedBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::SysctlUnprivileged => {
                "/proc/sys/kernel/io_uring_disabled is 1, which leaves it to CAP_SYS_ADMIN and to the group in \
                 /proc/sys/kernel/io_uring_group; put this user in that group, or set kernel.io_uring_disabled=0"
            }
            Self::Sysctl => {
                "/proc/sys/kernel/io_uring_disabled is 2, which forbids it to everyone; \
                 set kernel.io_uring_disabled=0 (sysctl -w, and /etc/sysctl.d to keep it)"
            }
            Self::Seccomp => {
                "a seccomp profile (a container's default profile) blocks io_uring_setup: run with seccomp=unconfined, \
                 or with a profile that allows io_uring_setup, io_uring_enter and io_uring_register"
            }
        })
    }
}

impl SetupError {
    fn explain(source: io::Error) -> Self {
        match source.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => {
                // Absent before Linux 6.6: then there is no such switch, and it was a filter.
                let disabled = fs::read_to_string("/proc/sys/kernel/io_uring_disabled").unwrap_or_default();
                Self::Blocked { by: blocked_by(&disabled), source }
            }
            Some(libc::ENOSYS) => Self::Missing(source),
            Some(libc::ENOMEM) => Self::Memory { limit: memlock_limit(), source },
            _ => Self::Other(source),
        }
    }
}

fn blocked_by(disabled: &str) -> BlockedBy {
    match disabled.trim() {
        "1" => BlockedBy::SysctlUnprivileged,
        "2" => BlockedBy::Sysctl,
        _ => BlockedBy::Seccomp,
    }
}

fn memlock_limit() -> Option<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the kernel fills in the structure it is given, which outlives the call.
    let result = unsafe { libc::getrlimit(libc::RLIMIT_MEMLOCK, &mut limit) };
    assert_eq!(result, 0, "a valid resource and a valid address");
    (limit.rlim_cur != libc::RLIM_INFINITY).then_some(limit.rlim_cur)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn explained(code: i32) -> String {
        SetupError::explain(io::Error::from_raw_os_error(code)).to_string()
    }

    #[test]
    fn says_what_to_change() {
        assert_eq!(blocked_by("1\n"), BlockedBy::SysctlUnprivileged);
        assert_eq!(blocked_by("2\n"), BlockedBy::Sysctl);
        assert_eq!(blocked_by("0\n"), BlockedBy::Seccomp);
        assert_eq!(blocked_by(""), BlockedBy::Seccomp);
        assert!(BlockedBy::SysctlUnprivileged.to_string().contains("io_uring_group"));
        assert!(explained(libc::EPERM).contains("io_uring"));
        assert!(explained(libc::ENOSYS).contains("CONFIG_IO_URING"));
        assert!(explained(libc::ENOMEM).contains("LimitMEMLOCK"));
        assert!(matches!(SetupError::explain(io::Error::from_raw_os_error(libc::EMFILE)), SetupError::Other(_)));
    }

    #[test]
    fn a_ring_shrinks_to_what_the_user_may_lock() {
        let mut sizes = Some(Sizes::of(Options { entries: 1000, operations_max: 5000 }));
        let mut seen = Vec::new();
        while let Some(Sizes { submissions, completions }) = sizes {
            ring_at(Sizes { submissions, completions }, Level::Plain).unwrap();
            seen.push((submissions, completions));
            sizes = Sizes { submissions, completions }.halved();
        }
        assert_eq!(seen.first(), Some(&(1024, 8192)));
        assert_eq!(seen.last(), Some(&(8, 16)));
    }

    #[test]
    #[should_panic(expected = "operations_max")]
    fn refuses_a_bound_the_kernel_cannot_hold() {
        let _ = ring(Options { entries: 8, operations_max: OPERATIONS_MAX + 1 });
    }
}
