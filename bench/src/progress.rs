//! Progress bars on standard error, so that standard output stays the result.

use indicatif::{ProgressBar, ProgressStyle};

/// A bar of `length` steps.
pub(crate) fn bar(length: u64, what: &'static str) -> ProgressBar {
    let style =
        ProgressStyle::with_template("{prefix:>16} {wide_bar} {pos}/{len} {msg}").expect("the template is valid");
    ProgressBar::new(length).with_style(style).with_prefix(what)
}
