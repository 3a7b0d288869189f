//! What a command costs the master's hot core in steady state: allocations, and entries to the kernel.
//!
//! Three replicas as in production, on real disks and sockets, but each hot core on a thread of this process: what a thread
//! allocates is known when it ends. Two cells that served more and fewer commands tell what the commands between them cost.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use anyhow::Context;
use serde_json::json;
use synod_bench::workload::{Plan, Work, Workload};
use synod_client::{Client, Options};
use synod_node::config::Config;
use synod_node::hot::HotCore;
use synod_node::local_cell::free_ports;
use synod_node::start::{self, FirstStart};
use synod_node::status::Status;
use synod_ring::Waker;

const REPLICAS: u16 = 3;
const WORKERS: usize = 1000;
const CONNECTIONS: usize = 100;
/// Commands of the shorter run; the longer one has four times as many.
const COMMANDS: u64 = 25_000;
const TIME_MAX: Duration = Duration::from_secs(60);

/// How often the kernel may be entered for a command, at 1000 workers (issue E asks for 0.1).
const ENTRIES_MAX: f64 = 0.1;
/// What is allocated for each batch (its bytes, which log, peers and ring share; its callers) comes to less than this for each of its
/// commands. A single allocation that every command makes is over it.
const ALLOCATIONS_MAX: f64 = 0.25;

/// What the master's hot core has done.
#[derive(Debug)]
struct Cost {
    commands: u64,
    kernel_entries: u64,
    allocations: u64,
}

fn configuration(dir: &Path, id: u16, ports: &[u16]) -> anyhow::Result<Config> {
    let members: Vec<_> = (1..=REPLICAS)
        .map(|id| {
            let at = 2 * usize::from(id - 1);
            let address = |port: u16| format!("127.0.0.1:{port}");
            json!({ "id": id, "peer": address(ports[at]), "client": address(ports[at + 1]) })
        })
        .collect();
    let dir = dir.join(id.to_string());
    Ok(serde_json::from_value(json!({ "id": id, "dir": dir, "member": members, "database_gb_max": 1 }))?)
}

/// Runs a replica on this thread until it is told to stop; gives what its hot core has allocated.
fn replica(config: &Config, running: &mpsc::Sender<(u16, Waker)>, stop: &Arc<AtomicBool>) -> anyhow::Result<u64> {
    let opened = start::open(config, FirstStart::Bootstrap)?;
    let mut core = HotCore::new(config, opened, Arc::clone(stop))?;
    running.send((config.id, core.waker()))?;
    let mut outcome = Ok(());
    let allocated = allocation_counter::measure(|| outcome = core.run());
    outcome?;
    Ok(allocated.count_total)
}

fn master(endpoints: &[String]) -> anyhow::Result<(usize, Status)> {
    let names: Vec<&str> = endpoints.iter().map(String::as_str).collect();
    let client = Client::connect(&names, Options::default())?;
    let give_up = Instant::now() + TIME_MAX;
    loop {
        for (index, endpoint) in endpoints.iter().enumerate() {
            if let Ok(status) = client.status(endpoint) {
                let status: Status = serde_json::from_str(&status)?;
                if status.is_master {
                    return Ok((index, status));
                }
            }
        }
        anyhow::ensure!(Instant::now() < give_up, "no master");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A new cell serves so many commands.
fn serve(commands: u64) -> anyhow::Result<Cost> {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
    let ports = free_ports(2 * usize::from(REPLICAS))?;
    let configurations: Vec<Config> =
        (1..=REPLICAS).map(|id| configuration(dir.path(), id, &ports)).collect::<Result<_, _>>()?;
    let endpoints: Vec<String> = configurations.iter().map(|config| config.me().client.to_string()).collect();
    let stop = Arc::new(AtomicBool::new(false));
    let (running, is_running) = mpsc::channel();
    std::thread::scope(|scope| {
        let cores: Vec<_> = configurations
            .iter()
            .map(|config| {
                let (running, stop) = (running.clone(), Arc::clone(&stop));
                scope.spawn(move || replica(config, &running, &stop))
            })
            .collect();
        let wakers: Vec<Waker> = (1..=REPLICAS)
            .map(|_| Ok(is_running.recv_timeout(TIME_MAX).context("a replica does not start")?.1))
            .collect::<anyhow::Result<_>>()?;
        let (_, before) = master(&endpoints)?;
        let plan = Plan {
            endpoints: endpoints.clone(),
            workers: WORKERS,
            connections: CONNECTIONS,
            value_bytes: 5,
            work: Work::OwnKey { reads_percent: 0, anywhere: None },
        };
        let mut workload = Workload::new(plan)?;
        let figures = workload.run(TIME_MAX, commands)?;
        anyhow::ensure!(figures.failures == 0, "{figures:?}");
        let (index, after) = master(&endpoints)?;
        drop(workload);
        stop.store(true, Ordering::Release);
        wakers.iter().for_each(Waker::wake);
        let allocated: Vec<u64> = cores
            .into_iter()
            .map(|core| core.join().expect("a panic ends the process"))
            .collect::<anyhow::Result<_>>()?;
        anyhow::ensure!(before.replica == after.replica, "another master: this run says nothing");
        Ok(Cost {
            commands: after.counters.engine.commands - before.counters.engine.commands,
            kernel_entries: after.counters.kernel_entries - before.counters.kernel_entries,
            allocations: allocated[index],
        })
    })
}

#[test]
fn a_command_allocates_nothing_and_shares_its_entries_to_the_kernel() -> anyhow::Result<()> {
    let (short, long) = (serve(COMMANDS)?, serve(4 * COMMANDS)?);
    println!("{short:?}\n{long:?}");
    let commands = (long.commands - short.commands) as f64;
    let allocations = long.allocations.saturating_sub(short.allocations) as f64 / commands;
    let entries = long.kernel_entries as f64 / long.commands as f64;
    println!("{allocations:.3} allocations, {entries:.3} entries to the kernel a command");
    assert!(long.commands >= 4 * COMMANDS, "{long:?}");
    assert!(allocations < ALLOCATIONS_MAX, "{allocations} allocations a command: {short:?}, {long:?}");
    assert!(entries < ENTRIES_MAX, "{entries} entries a command: {long:?}");
    Ok(())
}
