//! A bar on stderr for each file that comes from the hub.

use std::cell::OnceCell;

use indicatif::{ProgressBar, ProgressFinish, ProgressStyle};

use super::Policy;
use crate::source::hub::Transfer;

/// Draws a bar, unless the program is to be quiet. It begins with the first file and is cleared when the observer is dropped.
pub fn transfer_bar(policy: Policy) -> impl Fn(&Transfer) {
    let drawn: OnceCell<ProgressBar> = OnceCell::new();
    move |transfer| {
        if policy.quiet {
            return;
        }
        let bar = drawn.get_or_init(new_bar);
        if bar.message() != transfer.file {
            bar.reset();
            bar.set_message(transfer.file.to_owned());
        }
        bar.set_length(transfer.total);
        bar.set_position(transfer.done);
    }
}

fn new_bar() -> ProgressBar {
    let bar = ProgressBar::new(0).with_finish(ProgressFinish::AndClear);
    match ProgressStyle::with_template("{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}") {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}
