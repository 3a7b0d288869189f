//! `synod transfer` and `synod member`: what an operator asks of a running cell.

use std::io::Write;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::Subcommand;
use synod_node::operator::{OperatorAnswer, OperatorRequest};
use synod_node::status::{MemberStatus, Status};

use crate::{ClientArgs, endpoints};

/// How often the cell is asked whether it is done.
const POLL: Duration = Duration::from_millis(50);
/// A replica that runs answers at once.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(1);
/// A new member may have to fetch the whole log: it is waited for as long as it makes progress within this.
const CATCH_UP_SILENCE_MAX: Duration = Duration::from_secs(120);

/// What can be done about the members.
#[derive(Subcommand)]
pub(crate) enum MemberCommand {
    /// Show the members: who votes, who catches up, who takes part right now
    List {
        /// As one line of JSON
        #[arg(long)]
        json: bool,
    },
    /// Add a member: it learns first, and votes once it has caught up. Start it with `synod serve --join` after this
    Add {
        /// Its number: one that was never used in this cell
        id: u16,
        /// Where the other replicas reach it
        #[arg(long)]
        peer: SocketAddr,
        /// Where clients reach it
        #[arg(long)]
        client: SocketAddr,
        /// Do not wait until it votes
        #[arg(long)]
        no_wait: bool,
    },
    /// Remove a member. The master cannot remove itself: `synod transfer` first
    Remove {
        /// Which
        id: u16,
        /// Even if the cell survives no failure afterwards
        #[arg(long)]
        force: bool,
    },
    /// Replace a member by a new one: the new one is added and votes before the old one is removed
    Replace {
        /// The member that goes
        id: u16,
        /// The member that comes: a number that was never used in this cell
        #[arg(long)]
        with: u16,
        /// Where the other replicas reach the new one
        #[arg(long)]
        peer: SocketAddr,
        /// Where clients reach the new one
        #[arg(long)]
        client: SocketAddr,
    },
}

pub(crate) fn member(args: &ClientArgs, command: &MemberCommand) -> anyhow::Result<ExitCode> {
    match command {
        MemberCommand::List { json } => list(args, *json),
        MemberCommand::Add { id, peer, client, no_wait } => {
            add(args, *id, *peer, *client, !no_wait).map(|()| ExitCode::SUCCESS)
        }
        MemberCommand::Remove { id, force } => remove(args, *id, *force).map(|()| ExitCode::SUCCESS),
        MemberCommand::Replace { id, with, peer, client } => {
            if id == with {
                bail!("a member is replaced by another one: {id} cannot replace itself");
            }
            // Before anything is changed: what would be removed has to be there.
            let master = master(args)?;
            if find(&master, *id).is_none() {
                bail!("there is no member {id}");
            }
            if master.replica == *id {
                bail!("the master does not remove itself: transfer mastership first");
            }
            add(args, *with, *peer, *client, true)?;
            remove(args, *id, false).map(|()| ExitCode::SUCCESS)
        }
    }
}

pub(crate) fn transfer(args: &ClientArgs, to: u16) -> anyhow::Result<ExitCode> {
    let request = OperatorRequest::Transfer { to };
    let give_up = Instant::now() + deadline(args);
    // A master that lost its lease, or an election, before it had handed over has forgotten what it was asked: so each is asked.
    let mut asked = None;
    loop {
        match master(args) {
            Ok(status) if asked.is_some() && status.replica == to => {
                println!("replica {to} is the master, in epoch {}", status.epoch);
                return Ok(ExitCode::SUCCESS);
            }
            Ok(status) if asked.is_none_or(|epoch| status.epoch > epoch && Instant::now() < give_up) => {
                ask(args, &request)?;
                asked = Some(status.epoch);
            }
            _ if Instant::now() < give_up => std::thread::sleep(POLL),
            Ok(status) => bail!("replica {to} was asked to take over, but replica {} is the master", status.replica),
            Err(error) => return Err(error.context(format!("replica {to} was asked to take over"))),
        }
    }
}

fn list(args: &ClientArgs, json: bool) -> anyhow::Result<ExitCode> {
    let status = master(args)?;
    let mut out = std::io::stdout().lock();
    if json {
        writeln!(out, "{}", serde_json::to_string(&status.members)?)?;
        return Ok(ExitCode::SUCCESS);
    }
    writeln!(out, "{:>6}  {:<10}  {:<12}  address", "member", "role", "takes part")?;
    for member in &status.members {
        let role = match (member.votes, member.will_vote) {
            (true, true) => "voter",
            (false, true) => "voter soon",
            (true, false) => "voter still",
            (false, false) => "learner",
        };
        let alive = match member.is_alive {
            Some(true) => "yes",
            Some(false) => "NO",
            None => "?",
        };
        let address = if member.address.is_empty() { "(as in its flags)" } else { &member.address };
        writeln!(out, "{:>6}  {role:<10}  {alive:<12}  {address}", member.replica)?;
    }
    writeln!(out, "{}", tolerance(status.tolerance))?;
    Ok(ExitCode::SUCCESS)
}

/// How many more failures are survived, in words.
pub(crate) fn tolerance(tolerance: Option<i8>) -> String {
    match tolerance {
        None => "survives ? more failures (no coordinator)".to_owned(),
        Some(..0) => "CANNOT GO ON: no majority takes part".to_owned(),
        Some(0) => "survives NO more failure".to_owned(),
        Some(1) => "survives 1 more failure".to_owned(),
        Some(more) => format!("survives {more} more failures"),
    }
}

fn add(args: &ClientArgs, id: u16, peer: SocketAddr, client: SocketAddr, wait: bool) -> anyhow::Result<()> {
    ask(args, &OperatorRequest::AddMember { id, peer, client })?;
    let is_member = |status: &Status| find(status, id).is_some();
    let mut status = until(args, "the new member is in the configuration", is_member)?;
    println!("member {id} is a learner; start it now, if it is not running: synod serve --join --id {id} ...");
    if !wait {
        return Ok(());
    }
    let mut told = false;
    let mut patience = Instant::now() + CATCH_UP_SILENCE_MAX;
    loop {
        let found = find(&status, id).with_context(|| format!("member {id} was removed meanwhile"))?;
        if found.votes {
            println!("member {id} votes; {}", tolerance(status.tolerance));
            return Ok(());
        }
        if found.is_alive == Some(true) {
            patience = Instant::now() + CATCH_UP_SILENCE_MAX;
        } else if !std::mem::replace(&mut told, true) {
            eprintln!("synod: member {id} has not acknowledged anything yet: waiting until it has caught up");
        }
        if Instant::now() > patience {
            bail!(
                "member {id} has not taken part for {CATCH_UP_SILENCE_MAX:?}: it stays a learner, which costs the cell no \
                 tolerance. Is it running, and does {peer} lead to it? `synod member remove {id}` takes it out again"
            );
        }
        std::thread::sleep(POLL);
        status = master(args).unwrap_or(status);
    }
}

fn remove(args: &ClientArgs, id: u16, force: bool) -> anyhow::Result<()> {
    ask(args, &OperatorRequest::RemoveMember { id, force })?;
    let status = until(args, "the member is out of the configuration", |status| find(status, id).is_none())?;
    println!("member {id} is removed: its process may be stopped; {}", tolerance(status.tolerance));
    Ok(())
}

fn find(status: &Status, id: u16) -> Option<&MemberStatus> {
    status.members.iter().find(|member| member.replica == id)
}

fn deadline(args: &ClientArgs) -> Duration {
    Duration::from_millis(args.deadline_ms)
}

/// How long one replica may take to answer. One that stands still must not keep us from asking the others.
fn patience(args: &ClientArgs) -> Duration {
    (deadline(args) / 4).min(ANSWER_TIME_MAX)
}

/// Waits until the master's status shows it.
fn until(args: &ClientArgs, what: &str, shows: impl Fn(&Status) -> bool) -> anyhow::Result<Status> {
    let give_up = Instant::now() + deadline(args);
    loop {
        match master(args) {
            Ok(status) if shows(&status) => return Ok(status),
            _ if Instant::now() < give_up => std::thread::sleep(POLL),
            _ => bail!("it was accepted, but until the deadline it does not show that {what}: see `synod member list`"),
        }
    }
}

/// The master's status.
fn master(args: &ClientArgs) -> anyhow::Result<Status> {
    let mut last = None;
    for endpoint in endpoints(args)? {
        match synod_client::fetch_status(endpoint, patience(args)) {
            Ok(text) => {
                let status: Status =
                    serde_json::from_str(&text).with_context(|| format!("{endpoint} said what is no status"))?;
                if status.role == "coordinating" {
                    return Ok(status);
                }
            }
            Err(error) => last = Some(error),
        }
    }
    match last {
        Some(error) => Err(error).context("none of the replicas that answer coordinates"),
        None => bail!("none of these replicas coordinates"),
    }
}

/// Asks the master, whichever endpoint knows it, until it is granted, refused for good, or the deadline has passed.
fn ask(args: &ClientArgs, request: &OperatorRequest) -> anyhow::Result<()> {
    let request = serde_json::to_string(request)?;
    let give_up = Instant::now() + deadline(args);
    let known = endpoints(args)?;
    let mut asked = 0;
    let mut next: Option<String> = None;
    loop {
        let endpoint = next.take().unwrap_or_else(|| known[asked % known.len()].to_string());
        asked += 1;
        let last = match synod_client::operate(&endpoint, &request, patience(args)) {
            Ok(text) => match serde_json::from_str(&text).with_context(|| format!("{endpoint} said {text}"))? {
                OperatorAnswer::Accepted => return Ok(()),
                OperatorAnswer::NotMaster { master } => {
                    next = master;
                    anyhow::anyhow!("{endpoint} is not the master")
                }
                OperatorAnswer::Refused { reason, retry: true } => anyhow::anyhow!("{reason}"),
                OperatorAnswer::Refused { reason, retry: false } => bail!("{reason}"),
                OperatorAnswer::Traces(_) => bail!("{endpoint} answered what was not asked: {text}"),
            },
            Err(error) => error.into(),
        };
        if Instant::now() >= give_up {
            return Err(last);
        }
        std::thread::sleep(POLL);
    }
}
