//! A bar on stderr for each file that comes from the hub.

use std::cell::OnceCell;

use indicatif::{ProgressBar, ProgressStyle};

use super::Policy;
use super::progress::keep_live;
use crate::source::hub::Transfer;

/// Draws a bar, unless the program is to be quiet. It begins with the first file and is cleared when the observer is dropped; what is
/// said meanwhile stands above it.
pub fn transfer_bar(policy: Policy) -> impl Fn(&Transfer) {
    let drawn: OnceCell<Bar> = OnceCell::new();
    move |transfer| {
        if policy.quiet {
            return;
        }
        let Bar(bar) = drawn.get_or_init(Bar::new);
        if bar.message() != transfer.file {
            bar.reset();
            bar.set_message(transfer.file.to_owned());
        }
        bar.set_length(transfer.total);
        bar.set_position(transfer.done);
    }
}

struct Bar(ProgressBar);

impl Bar {
    fn new() -> Self {
        let bar = ProgressBar::new(0);
        if let Ok(style) = ProgressStyle::with_template("{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}") {
            bar.set_style(style);
        }
        keep_live(Some(&bar));
        Self(bar)
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        keep_live(None);
        self.0.finish_and_clear();
    }
}
