//! A short run of `synod-fuzz`, always the same one.

use synod_tests::fuzz::{self, TARGETS};

const SEED: u64 = 5;
const EXECUTIONS: u64 = 20_000;
/// Each reads a whole log.
const EXECUTIONS_OF_RECOVERY: u64 = 1_000;

#[test]
fn no_decoder_is_surprised() {
    for target in TARGETS {
        let executions = if target.name == "recovery" { EXECUTIONS_OF_RECOVERY } else { EXECUTIONS };
        let report = fuzz::run(target, SEED, executions, |_, _| ()).unwrap_or_else(|finding| {
            panic!("{}, execution {}: {finding}", target.name, fuzz::execution());
        });
        assert_eq!(report.why_void(), None, "{}: {} taken", target.name, report.taken);
    }
}

/// A decoder that takes what it should refuse is found.
#[test]
fn a_finding_is_one() {
    fn takes_all(bytes: &[u8]) -> Result<fuzz::Verdict, fuzz::Finding> {
        match bytes.first() {
            Some(0xff) => Err(fuzz::Finding { what: "planted", bytes: String::new() }),
            Some(_) => Ok(fuzz::Verdict::Taken),
            None => Ok(fuzz::Verdict::Refused),
        }
    }
    let planted = fuzz::Target {
        name: "planted",
        about: "a planted finding",
        samples: || vec![vec![1, 2, 3]],
        mend: |_, _| (),
        feed: takes_all,
    };
    assert_eq!(
        fuzz::run(&planted, SEED, EXECUTIONS, |_, _| ()).map(|report| report.taken).unwrap_err().what,
        "planted"
    );
}
