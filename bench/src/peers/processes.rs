//! A peer's servers: real processes, ended by their ids, and what they cost.

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};

/// Running servers. Dropping this kills them.
#[derive(Default)]
pub(super) struct Processes {
    running: Vec<(Child, PathBuf)>,
}

impl Processes {
    /// Starts one more; what it prints goes to the file. It ends with us, however we end.
    pub(super) fn start(&mut self, program: &Path, arguments: &[String], log: PathBuf) -> anyhow::Result<()> {
        let file = File::create(&log).with_context(|| format!("cannot make {}", log.display()))?;
        // The program takes the place of `setpriv`, so the id is its own.
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "--"])
            .arg(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("cannot start {} with setpriv (util-linux)", program.display()))?;
        self.running.push((child, log));
        Ok(())
    }

    /// Fails if one has ended, with the last that it printed.
    pub(super) fn check(&mut self) -> anyhow::Result<()> {
        for (child, log) in &mut self.running {
            if let Some(status) = child.try_wait()? {
                let said = std::fs::read_to_string(log).unwrap_or_default();
                let last: Vec<_> = said.lines().rev().take(5).collect();
                bail!("a server ended with {status}; it printed, the last first:\n{}", last.join("\n"));
            }
        }
        Ok(())
    }

    /// Their process ids.
    pub(super) fn ids(&self) -> Vec<u32> {
        self.running.iter().map(|(child, _)| child.id()).collect()
    }
}

impl Drop for Processes {
    fn drop(&mut self) {
        // All of them first, so that nobody sees another go.
        for (child, _) in &mut self.running {
            if let Err(error) = child.kill() {
                eprintln!("synod-bench: cannot kill a server: {error}");
            }
        }
        for (child, _) in &mut self.running {
            if let Err(error) = child.wait() {
                eprintln!("synod-bench: cannot reap a server: {error}");
            }
        }
    }
}

/// Addresses on loopback that are free now.
pub(super) fn free_addresses(count: usize) -> anyhow::Result<Vec<SocketAddr>> {
    let ports = synod_node::local_cell::free_ports(count).context("cannot find free ports")?;
    Ok(ports.into_iter().map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port))).collect())
}

/// The user and system time of these processes so far, all their threads together.
pub(super) fn cpu_time(processes: &[u32]) -> anyhow::Result<Duration> {
    processes.iter().map(|id| cpu_time_of(*id).with_context(|| format!("the CPU time of process {id}"))).sum()
}

fn cpu_time_of(id: u32) -> anyhow::Result<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{id}/stat"))?;
    let ticks = ticks(&stat).context("the kernel's line is not as expected")?;
    Ok(Duration::from_nanos(ticks * (1_000_000_000 / rustix::param::clock_ticks_per_second())))
}

/// `utime` and `stime` together, fields 14 and 15. The second is a name, in which anything may be, in parentheses.
fn ticks(stat: &str) -> Option<u64> {
    let (_, behind_name) = stat.rsplit_once(") ")?;
    let mut fields = behind_name.split(' ').skip(14 - 3);
    let (user, system): (u64, u64) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    Some(user + system)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_line_is_read() {
        let stat = "12 (a) (b) c) S 1 12 12 0 -1 4194560 100 0 0 0 250 37 5 6 20 0 1 0 100 0 0";
        assert_eq!(ticks(stat), Some(287));
        assert_eq!(ticks("12 (a) S 1"), None);
    }

    #[test]
    fn work_shows_in_the_cpu_time() -> anyhow::Result<()> {
        let own = [std::process::id()];
        let before = cpu_time(&own)?;
        // Two ticks are seen for sure when three have been worked.
        while cpu_time(&own)? < before + Duration::from_millis(20) {}
        assert!(cpu_time(&[u32::MAX]).is_err());
        Ok(())
    }
}
