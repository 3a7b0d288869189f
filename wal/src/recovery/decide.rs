//! The decision table: what lies behind the last frame taken, and so where the log goes on, or why it ends.

use super::OpenError;
use super::disk::{Found, Later, Sight};
use crate::types::FrameNumber;

/// Where recovery goes from the end of frame `k - 1`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Frame `k` is here.
    Take,
    /// Frame `k` opens the next segment.
    RollOver,
    /// Frames are missing; the log goes on with this one.
    Hole(Found),
    /// The log ends here.
    Clean,
    /// Frame `k` was being written here.
    TornHere,
    /// Frame `k` was being written at the start of the next segment.
    TornNext,
    /// Frames are missing, and none is behind them: this one was durable once.
    EndLost(FrameNumber),
    /// What could have held frame `k` is gone, or was changed: it was durable, for all that is known.
    EndUnknown,
    /// Frame `k` did not follow the frame `k - 1` that was read: one of the two is not what was written last.
    Contradicted,
}

/// What can be found out about the place behind frame `k - 1`; each costs more to ask than the one before.
pub(super) trait Evidence {
    /// What is to be seen right behind frame `k - 1`.
    fn here(&mut self) -> Result<Sight, OpenError>;
    /// What is to be seen at the start of the next segment, where frame `k` is if it did not fit here.
    fn next(&mut self) -> Result<Sight, OpenError>;
    /// The first frame to be believed behind `k`, anywhere from here on; or else any sound header that `k` or a later one left.
    fn later(&mut self) -> Result<Later, OpenError>;
}

/// All of what recovery decides about holes and about the log's end is decided here. First row that fits; `docs/format.md` has
/// the same table.
///
/// | here                   | next segment's start   | further on  | verdict                                                 |
/// |------------------------|------------------------|-------------|---------------------------------------------------------|
/// | whole                  |                        |             | take it                                                 |
/// | unfit                  |                        |             | contradicted                                            |
/// | anything else          | whole                  |             | roll over: numbers and checksums leave nothing between  |
/// | anything else          | unfit                  |             | contradicted                                            |
/// | anything else          | anything else          | a frame     | a hole up to there: it was written after `k` was durable |
/// | anything else          | anything else          | a header    | the end is lost: that one was durable, and is not there |
/// | anything else          | gone, earlier          | none        | the end is unknown: the next segment may have begun     |
/// | gone                   | anything else          | none        | the end is unknown: the file was cut short              |
/// | anything else          | torn, garbage          | none        | torn there: the next segment has begun                  |
/// | blank, absent, remains | blank, absent, remains | none        | clean end                                               |
/// | torn, garbage, earlier | blank, absent, remains | none        | torn here                                               |
///
/// *Remains* are of an earlier use of the blocks, before they were recycled. In the third row what is here was torn in a life
/// before the one that rolled over. In the last but two, too; the next life must begin the next segment again and not continue
/// here, or that segment's torn header would outlive frame `k`.
pub(super) fn decide(evidence: &mut impl Evidence) -> Result<Verdict, OpenError> {
    let here = evidence.here()?;
    match here {
        Sight::Whole => return Ok(Verdict::Take),
        Sight::Unfit => return Ok(Verdict::Contradicted),
        _ => {}
    }
    let next = evidence.next()?;
    match next {
        Sight::Whole => return Ok(Verdict::RollOver),
        Sight::Unfit => return Ok(Verdict::Contradicted),
        _ => {}
    }
    match evidence.later()? {
        Later::Frame(found) => return Ok(Verdict::Hole(found)),
        Later::Header(number) => return Ok(Verdict::EndLost(number)),
        Later::Nothing => {}
    }
    Ok(match (here, next) {
        (_, Sight::Gone | Sight::Earlier) | (Sight::Gone, _) => Verdict::EndUnknown,
        (_, Sight::Torn | Sight::Garbage) => Verdict::TornNext,
        (Sight::Blank | Sight::Absent | Sight::Remains, _) => Verdict::Clean,
        _ => Verdict::TornHere,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::SegmentId;

    struct Scene {
        here: Sight,
        next: Sight,
        later: Later,
    }

    impl Evidence for Scene {
        fn here(&mut self) -> Result<Sight, OpenError> {
            Ok(self.here)
        }
        fn next(&mut self) -> Result<Sight, OpenError> {
            Ok(self.next)
        }
        fn later(&mut self) -> Result<Later, OpenError> {
            Ok(self.later)
        }
    }

    #[test]
    fn every_row_of_the_table() {
        const K: FrameNumber = FrameNumber(9);
        const FOUND: Found = Found { segment: SegmentId(3), offset: 4096, number: K };
        let sights = [
            Sight::Absent,
            Sight::Gone,
            Sight::Blank,
            Sight::Remains,
            Sight::Garbage,
            Sight::Earlier,
            Sight::Torn,
            Sight::Whole,
            Sight::Unfit,
            Sight::Later,
        ];
        for here in sights {
            for next in sights {
                for later in [Later::Nothing, Later::Frame(FOUND), Later::Header(K)] {
                    let expected = match (here, next, later) {
                        (Sight::Whole, ..) => Verdict::Take,
                        (Sight::Unfit, ..) => Verdict::Contradicted,
                        (_, Sight::Whole, _) => Verdict::RollOver,
                        (_, Sight::Unfit, _) => Verdict::Contradicted,
                        (_, _, Later::Frame(found)) => Verdict::Hole(found),
                        (_, _, Later::Header(number)) => Verdict::EndLost(number),
                        (_, Sight::Gone | Sight::Earlier, Later::Nothing) => Verdict::EndUnknown,
                        (Sight::Gone, _, Later::Nothing) => Verdict::EndUnknown,
                        (_, Sight::Torn | Sight::Garbage, Later::Nothing) => Verdict::TornNext,
                        (Sight::Absent | Sight::Blank | Sight::Remains, _, Later::Nothing) => Verdict::Clean,
                        (_, _, Later::Nothing) => Verdict::TornHere,
                    };
                    let found = decide(&mut Scene { here, next, later }).expect("no I/O");
                    assert_eq!(found, expected, "{here:?} {next:?} {later:?}");
                }
            }
        }
    }
}
