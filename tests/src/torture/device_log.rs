//! What the log of a block device proves: that a write was durable before its client was told so.
//!
//! The log is what nbdkit's log filter prints: a line when a request begins and one when it has ended, each with the wall
//! clock to the microsecond, as in
//!
//! ```text
//! 2026-11-21 10:43:55.059819 connection=3 Write id=74 offset=0x49000 count=0x400 fua=0 ...
//! 2026-11-21 10:43:55.059891 connection=3 ...Write id=74 return=0
//! 2026-11-21 10:43:55.060331 connection=1 Flush id=75 ...
//! 2026-11-21 10:43:55.060502 connection=1 ...Flush id=75 return=0
//! ```
//!
//! A place on the device is written more than once: zeros when the segment is prepared, then the frame. Which of the
//! writes brought what is there now? The last one. It alone counts: an earlier one and its flush prove nothing.

use std::collections::HashMap;

/// A moment of the wall clock, in microseconds since 1970.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct WallClock(pub i64);

impl WallClock {
    /// Now.
    #[must_use]
    pub fn now() -> Self {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        Self(since.map_or(0, |since| i64::try_from(since.as_micros()).unwrap_or(i64::MAX)))
    }

    /// Microseconds from an earlier moment to this one.
    #[must_use]
    pub fn since(self, earlier: WallClock) -> i64 {
        self.0 - earlier.0
    }

    /// As nbdkit prints it, in UTC: a date and a time.
    fn parse(date: &str, time: &str) -> Option<Self> {
        fn numbers<const N: usize>(text: &str, separators: &[char]) -> Option<[i64; N]> {
            let numbers: Option<Vec<i64>> = text.split(separators).map(|number| number.parse().ok()).collect();
            numbers?.try_into().ok()
        }
        let [year, month, day] = numbers(date, &['-'])?;
        let [hour, minute, second, micros] = numbers(time, &[':', '.'])?;
        // Days since 1970, by Howard Hinnant's algorithm: years begin in March, so that the leap day is a year's last.
        let year = if month <= 2 { year - 1 } else { year };
        let (era, year_of_era) = (year.div_euclid(400), year.rem_euclid(400));
        let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
        let day_of_era = 365 * year_of_era + year_of_era / 4 - year_of_era / 100 + day_of_year;
        let days = 146_097 * era + day_of_era - 719_468;
        Some(Self((((days * 24 + hour) * 60 + minute) * 60 + second) * 1_000_000 + micros))
    }
}

/// A request that wrote to the device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DeviceWrite {
    /// From here.
    pub offset: u64,
    /// So many bytes.
    pub count: u64,
    /// When the device was asked.
    pub began: WallClock,
    /// When it had answered.
    pub ended: WallClock,
    /// It was durable by itself then.
    pub fua: bool,
}

/// A request to make all writes that had ended durable.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DeviceFlush {
    /// When the device was asked.
    pub began: WallClock,
    /// When it had answered.
    pub ended: WallClock,
}

/// All that one device was told, in the order in which it had answered.
#[derive(Clone, Debug, Default)]
pub struct DeviceLog {
    /// Writes, zeroes and trims that succeeded.
    pub writes: Vec<DeviceWrite>,
    /// Flushes that succeeded.
    pub flushes: Vec<DeviceFlush>,
}

/// A log that cannot be trusted to tell all.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("line {line} of a device's log: {what}: {text:?}")]
pub struct LogError {
    /// Which line, from 1.
    pub line: usize,
    /// What is wrong with it.
    pub what: &'static str,
    /// The line.
    pub text: String,
}

#[derive(Clone, Copy)]
enum Began {
    Write { offset: u64, count: u64, fua: bool },
    Flush,
}

impl DeviceLog {
    /// Reads the log filter's file. Whatever could hide a write is an error, not skipped.
    pub fn parse(text: &str) -> Result<Self, LogError> {
        let mut log = Self::default();
        let mut open = HashMap::new();
        for (index, line) in text.lines().enumerate() {
            let error = |what| LogError { line: index + 1, what, text: line.to_owned() };
            let mut words = line.split(' ');
            let (Some(date), Some(time)) = (words.next(), words.next()) else { return Err(error("no time")) };
            let at = WallClock::parse(date, time).ok_or_else(|| error("the time cannot be read"))?;
            let words: Vec<&str> = words.collect();
            let Some(connection) = words.first().and_then(|word| word.strip_prefix("connection=")) else {
                continue; // Not about a request: "Ready" and the like.
            };
            let field = |name: &str| words.iter().find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
            let number = |name: &str| {
                let text = field(name)?;
                text.strip_prefix("0x").map_or_else(|| text.parse().ok(), |hex| u64::from_str_radix(hex, 16).ok())
            };
            let action = *words.get(1).ok_or_else(|| error("no action"))?;
            let key = |action: &str| (connection.to_owned(), number("id"), action.to_owned());
            match action {
                "Write" | "Zero" | "Trim" => {
                    let (Some(offset), Some(count)) = (number("offset"), number("count")) else {
                        return Err(error("no offset or count"));
                    };
                    let fua = number("fua") == Some(1);
                    open.insert(key(action), (at, Began::Write { offset, count, fua }));
                }
                "Flush" => {
                    open.insert(key(action), (at, Began::Flush));
                }
                "...Write" | "...Zero" | "...Trim" | "...Flush" => {
                    let request = open.remove(&key(&action[3..]));
                    let (began, request) = request.ok_or_else(|| error("the end of a request that did not begin"))?;
                    if field("return") != Some("0") {
                        return Err(error("a request failed"));
                    }
                    match request {
                        Began::Write { offset, count, fua } => {
                            log.writes.push(DeviceWrite { offset, count, began, ended: at, fua });
                        }
                        Began::Flush => log.flushes.push(DeviceFlush { began, ended: at }),
                    }
                }
                _ => {}
            }
        }
        Ok(log)
    }

    /// What happened to the bytes that are on the device now, from `offset` on: the write that brought them, and when
    /// they were durable. `None` if no one write did, or no flush followed it.
    #[must_use]
    pub fn durable(&self, offset: u64, count: u64) -> Option<(DeviceWrite, WallClock)> {
        let end = offset + count;
        let touches = |write: &&DeviceWrite| write.offset < end && offset < write.offset + write.count;
        let last = *self.writes.iter().filter(touches).max_by_key(|write| write.ended)?;
        if last.offset > offset || last.offset + last.count < end {
            return None;
        }
        if last.fua {
            return Some((last, last.ended));
        }
        let flushes = self.flushes.iter().filter(|flush| flush.began > last.ended);
        Some((last, flushes.map(|flush| flush.ended).min()?))
    }
}

/// When a client asked for a write, and when it was told that it was done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Told {
    /// Before the request left.
    pub asked: WallClock,
    /// After the answer came.
    pub answered: WallClock,
}

/// Why a write is not proved durable.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum NotProved {
    /// On too few devices it was durable when the client was told.
    #[error("it was durable on {in_time} of {devices} devices before the answer came; the others: {late}")]
    TooFew {
        /// Devices where it was.
        in_time: usize,
        /// All devices.
        devices: usize,
        /// How late it was on the others.
        late: String,
    },
    /// The log says that it was written before it was asked for: what is compared does not belong together.
    #[error("it was on a device {microseconds} us before it was asked for: this log, or this clock, proves nothing")]
    TooEarly {
        /// How much before.
        microseconds: i64,
    },
}

/// A write that is proved to have been durable on a majority.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Proved {
    /// On so many devices.
    pub devices: usize,
    /// Microseconds from the moment when a majority had it to the answer.
    pub margin_us: i64,
}

/// Judges one acknowledged write: for each device, what its log says of the frame that holds it.
pub fn judge(told: Told, devices: &[Option<(DeviceWrite, WallClock)>]) -> Result<Proved, NotProved> {
    let majority = devices.len() / 2 + 1;
    for (write, _) in devices.iter().flatten() {
        if write.began < told.asked {
            return Err(NotProved::TooEarly { microseconds: told.asked.since(write.began) });
        }
    }
    let mut durable: Vec<WallClock> = devices.iter().flatten().map(|(_, durable)| *durable).collect();
    durable.sort_unstable();
    // The clock's step is a microsecond, so "before" means an earlier one.
    let in_time = durable.iter().filter(|&&durable| durable < told.answered).count();
    if in_time < majority {
        let late = |at: &WallClock| format!("{} us after it", at.since(told.answered));
        let mut late: Vec<String> = durable[in_time..].iter().map(late).collect();
        late.extend((durable.len()..devices.len()).map(|_| "never".to_owned()));
        return Err(NotProved::TooFew { in_time, devices: devices.len(), late: late.join(", ") });
    }
    Ok(Proved { devices: in_time, margin_us: told.answered.since(durable[majority - 1]) })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "\
2026-11-21 10:43:53.743427 Ready thread_model=3
2026-11-21 10:43:54.000000 connection=1 Connect export=\"\" tls=0 size=0x10000000 write=1 flush=1
2026-11-21 10:43:55.000010 connection=1 Write id=1 offset=0x4000 count=0x4000 fua=0 ...
2026-11-21 10:43:55.000020 connection=1 ...Write id=1 return=0
2026-11-21 10:43:55.000030 connection=2 Flush id=1 ...
2026-11-21 10:43:55.000040 connection=2 ...Flush id=1 return=0
2026-11-21 10:43:55.000100 connection=1 Write id=2 offset=0x5000 count=0x1000 fua=0 ...
2026-11-21 10:43:55.000105 connection=2 Flush id=3 ...
2026-11-21 10:43:55.000110 connection=1 ...Write id=2 return=0
2026-11-21 10:43:55.000115 connection=2 ...Flush id=3 return=0
2026-11-21 10:43:55.000120 connection=3 Flush id=2 ...
2026-11-21 10:43:55.000190 connection=3 ...Flush id=2 return=0
2026-11-21 10:43:55.000200 connection=3 Write id=4 offset=0x8000 count=0x1000 fua=1 ...
2026-11-21 10:43:55.000210 connection=3 ...Write id=4 return=0
";

    fn at(microseconds: i64) -> WallClock {
        WallClock(WallClock::parse("2026-11-21", "10:43:55.000000").unwrap().0 + microseconds)
    }

    #[test]
    fn the_time_is_read() {
        // `date -u -d '2026-11-21 10:43:55' +%s`, and the same for the others.
        assert_eq!(WallClock::parse("2026-11-21", "10:43:55.000007"), Some(WallClock(1_795_257_835_000_007)));
        assert_eq!(WallClock::parse("1970-01-01", "00:00:00.000000"), Some(WallClock(0)));
        assert_eq!(WallClock::parse("2024-02-29", "23:59:59.999999"), Some(WallClock(1_709_251_199_999_999)));
        assert_eq!(WallClock::parse("2024-02-29", "noon"), None);
    }

    #[test]
    fn what_counts_is_the_last_write_and_a_flush_that_began_after_it() {
        let log = DeviceLog::parse(LOG).unwrap();
        assert_eq!((log.writes.len(), log.flushes.len()), (3, 3));
        // Zeros alone: the first flush.
        assert_eq!(log.durable(0x4000, 0x1000).unwrap().1, at(40));
        // The frame: neither the flush before it nor the one that began before it had ended.
        let (write, durable) = log.durable(0x5000, 0x1000).unwrap();
        assert_eq!((write.began, write.ended, durable), (at(100), at(110), at(190)));
        // Durable by itself.
        assert_eq!(log.durable(0x8000, 0x1000).unwrap().1, at(210));
        // Part of it came with another write; or nothing did.
        assert_eq!(log.durable(0x4800, 0x1000), None);
        assert_eq!(log.durable(0x9000, 0x1000), None);
        // No flush after it.
        let mut unflushed = log;
        unflushed.flushes.pop();
        assert_eq!(unflushed.durable(0x5000, 0x1000), None);
    }

    #[test]
    fn a_log_that_may_hide_something_is_refused() {
        for (change, what) in [
            (("...Flush id=2 return=0", "...Flush id=2 return=-1 error=EIO"), "failed"),
            (("Write id=2 offset=0x5000", "Write id=9 offset=0x5000"), "did not begin"),
            (("offset=0x8000 count=0x1000", "offset=0x8000"), "offset or count"),
            (("2026-11-21 10:43:55.000200", "yesterday afternoon"), "time"),
        ] {
            let text = LOG.replacen(change.0, change.1, 1);
            assert_ne!(text, LOG);
            let error = DeviceLog::parse(&text).unwrap_err().to_string();
            assert!(error.contains(what), "{error}");
        }
    }

    #[test]
    fn a_write_is_proved_by_a_majority_in_time() {
        let told = Told { asked: at(0), answered: at(100) };
        let device = |ended: i64, durable: i64| {
            let write = DeviceWrite { offset: 0, count: 4096, began: at(ended - 5), ended: at(ended), fua: false };
            Some((write, at(durable)))
        };
        assert_eq!(judge(told, &[device(10, 60), device(20, 90), None]), Ok(Proved { devices: 2, margin_us: 10 }));
        assert_eq!(
            judge(told, &[device(10, 70), device(10, 60), device(9, 65)]),
            Ok(Proved { devices: 3, margin_us: 35 })
        );
        for devices in [
            [device(10, 60), device(20, 101), device(20, 150)],
            [device(10, 60), device(20, 100), None],
            [device(10, 60), None, None],
            [None, None, None],
        ] {
            assert!(matches!(judge(told, &devices), Err(NotProved::TooFew { .. })), "{devices:?}");
        }
        let early = judge(told, &[device(3, 60), device(20, 90), None]);
        assert_eq!(early, Err(NotProved::TooEarly { microseconds: 2 }));
    }
}
