//! `synod scrub`: has running replicas look through their databases and logs for rot now, and tells what they found.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use synod_node::operator::{OperatorAnswer, OperatorRequest};
use synod_node::scrub::ScrubStatus;
use synod_node::status::Status;

use crate::{ClientArgs, endpoints};

const POLL: Duration = Duration::from_millis(200);
/// A replica that says nothing for so long is not waited for.
const SILENCE_MAX: Duration = Duration::from_secs(30);

pub(crate) fn main(args: &ClientArgs) -> anyhow::Result<ExitCode> {
    let request = serde_json::to_string(&OperatorRequest::Scrub)?;
    let patience = Duration::from_millis(args.deadline_ms);
    let mut code = ExitCode::SUCCESS;
    for endpoint in endpoints(args)? {
        // Who does not answer is told, and does not keep the others from being looked at.
        match scrub(endpoint, &request, patience) {
            Ok(true) => {}
            Ok(false) => code = ExitCode::FAILURE,
            Err(error) => {
                eprintln!("synod: {endpoint}: {error:#}");
                code = ExitCode::FAILURE;
            }
        }
    }
    Ok(code)
}

/// Whether nothing was found.
fn scrub(endpoint: &str, request: &str, patience: Duration) -> anyhow::Result<bool> {
    let before = fetch(endpoint, patience)?.scrub;
    let answer = synod_client::operate(endpoint, request, patience)?;
    match serde_json::from_str(&answer).with_context(|| format!("it said {answer}"))? {
        // One that is under way will do.
        OperatorAnswer::Accepted | OperatorAnswer::Refused { retry: true, .. } => {}
        OperatorAnswer::Refused { reason, retry: false } => bail!("{reason}"),
        OperatorAnswer::NotMaster { .. } | OperatorAnswer::Traces(_) => bail!("it answered what was not asked"),
    }
    let mut heard = Instant::now();
    loop {
        std::thread::sleep(POLL);
        match fetch(endpoint, SILENCE_MAX) {
            Ok(Status { replica, scrub: now, .. }) => {
                heard = Instant::now();
                if ended(&now) < ended(&before) {
                    bail!("it was started again meanwhile");
                }
                if ended(&now) > ended(&before) {
                    let (pages, bytes) = (now.pages - before.pages, now.log_bytes - before.log_bytes);
                    let in_words = match (now.damaged - before.damaged, now.log_damaged - before.log_damaged) {
                        (0, 0) if now.given_up > before.given_up => bail!("the round was given up; its log says why"),
                        (0, 0) => format!("{pages} pages and {bytes} bytes of log are sound"),
                        (0, count) => format!("{count} segments of the log are damaged; it is cut behind them"),
                        _ => "the database is damaged: in quarantine, to be rebuilt".to_owned(),
                    };
                    println!("replica {replica}: {in_words}");
                    return Ok((now.damaged, now.log_damaged) == (before.damaged, before.log_damaged));
                }
            }
            Err(error) if heard.elapsed() > SILENCE_MAX => return Err(error).context("it does not answer any more"),
            Err(_) => {}
        }
    }
}

/// How many rounds have ended.
fn ended(status: &ScrubStatus) -> u64 {
    status.rounds + status.damaged + status.given_up
}

fn fetch(endpoint: &str, patience: Duration) -> anyhow::Result<Status> {
    let text = synod_client::fetch_status(endpoint, patience)?;
    serde_json::from_str(&text).with_context(|| format!("it said what is no status: {text}"))
}
