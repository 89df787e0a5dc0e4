//! Event files as TensorBoard reads them: TFRecord frames around Protocol Buffers messages of the type `tensorflow.Event`.

use crate::invert::Scores;
use crate::metrics::Spread;

use super::event::Event;

/// Name of the file. TensorBoard looks for `tfevents` in it.
pub const FILE: &str = "events.out.tfevents.dlmi";

/// The record that opens a file. `wall_time` counts seconds since 1970.
pub fn header(wall_time: f64) -> Vec<u8> {
    frame(&[double(1, wall_time), bytes(3, b"brain.Event:2")].concat())
}

/// All scalars of a step, as one record.
pub fn record(wall_time: f64, event: &Event) -> Vec<u8> {
    let value = |(tag, value): (String, f64)| bytes(1, &[bytes(1, tag.as_bytes()), float(2, value as f32)].concat());
    let summary: Vec<u8> = scalars(event).into_iter().flat_map(value).collect();
    frame(&[double(1, wall_time), whole(2, event.step), bytes(5, &summary)].concat())
}

/// Tag and value of everything in `event` that is a number.
fn scalars(event: &Event) -> Vec<(String, f64)> {
    let one = |tag: &str, value: Option<f64>| value.map(|value| (tag.to_owned(), value));
    let three = |tag: &str, spread: Option<Spread>| {
        let parts = spread.map(|Spread { mean, min, max }| [("mean", mean), ("min", min), ("max", max)]);
        parts.into_iter().flatten().map(|(part, value)| (format!("{tag}/{part}"), value)).collect::<Vec<_>>()
    };
    let score = |tag: &str, value: fn(&Scores) -> Option<f64>| one(tag, event.scores.as_ref().and_then(value));
    let scores = [
        score("lcs/relaxed_forced", |scores| scores.relaxed_forced.map(|spread| spread.mean)),
        score("lcs/relaxed_free", |scores| scores.relaxed_free.map(|spread| spread.mean)),
        score("lcs/hard_forced", |scores| Some(scores.hard_forced)),
        score("lcs/hard_free", |scores| Some(scores.hard_free)),
        score("accuracy/hard_forced", |scores| Some(scores.hard_forced_accuracy)),
        score("accuracy/hard_free", |scores| Some(scores.hard_free_accuracy)),
    ];
    let mut found = Vec::new();
    found.extend(one("objective", event.objective.map(f64::from)));
    found.extend(one("gradient_norm", event.gradient_norm.map(f64::from)));
    found.extend(three("temperature", event.temperature));
    found.extend(three("entropy", event.entropy));
    found.extend(scores.into_iter().flatten());
    found.extend(one("best/matched_prefix", event.best.map(|best| best.matched_prefix as f64)));
    found
}

/// A TFRecord: length, data, and a checksum of either.
fn frame(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    [&length[..], &checksum(&length).to_le_bytes(), data, &checksum(data).to_le_bytes()].concat()
}

/// CRC-32C, masked: a checksum of data that hold checksums would be weak.
fn checksum(data: &[u8]) -> u32 {
    crc32c::crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8)
}

fn varint(mut value: u64) -> Vec<u8> {
    let mut out = Vec::new();
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
    out
}

/// A field of a message begins with its number and how its value is written.
fn field(number: u8, wire_type: u8, value: &[u8]) -> Vec<u8> {
    [&[number << 3 | wire_type][..], value].concat()
}

fn whole(number: u8, value: u64) -> Vec<u8> {
    field(number, 0, &varint(value))
}

fn double(number: u8, value: f64) -> Vec<u8> {
    field(number, 1, &value.to_le_bytes())
}

fn bytes(number: u8, value: &[u8]) -> Vec<u8> {
    field(number, 2, &[&varint(value.len() as u64)[..], value].concat())
}

fn float(number: u8, value: f32) -> Vec<u8> {
    field(number, 5, &value.to_le_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::hex;
    use crate::invert::event::BestSoFar;
    use crate::subject::Cost;

    /// The answers that RFC 3720 gives in B.4, and the usual check.
    #[test]
    fn checksums_are_crc_32c() {
        assert_eq!(crc32c::crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c::crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c::crc32c(&[0xff; 32]), 0x62a8_ab43);
    }

    /// What the record writer of tensorboard 2.21 makes of the same messages.
    #[test]
    fn records_are_those_of_tensorboard() {
        let first = "1800000000000000a37f4b220900001040fc54d9411a0d627261696e2e4576656e743a32338d2fe9";
        assert_eq!(hex(&header(1_700_000_000.25)), first);
        let second = "3c00000000000000c8b7a3520900002040fc54d94110ac022a2e0a100a096f626a656374697665150000003f\
                      0a1a0a13626573742f6d6174636865645f70726566697815000040409fbfb767";
        let event = Event {
            step: 300,
            restart: 0,
            seconds: 1.0,
            prompt_tokens: None,
            objective: Some(0.5),
            gradient_norm: None,
            temperature: None,
            entropy: None,
            best: Some(BestSoFar { matched_prefix: 3, valid: true, step: 7 }),
            scores: None,
            cost: Cost::default(),
        };
        assert_eq!(hex(&record(1_700_000_000.5, &event)), second);
    }
}
