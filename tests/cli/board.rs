//! Reads TensorBoard files, with nothing of the code that writes them.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// A record of a TensorBoard file: when, after which step, and what it says.
#[derive(Debug, Default, PartialEq)]
pub struct Record {
    pub wall_time: f64,
    pub step: u64,
    pub version: String,
    pub scalars: BTreeMap<String, f32>,
}

/// The records of the one TensorBoard file in a run's folder.
pub fn board(out: &Path) -> Vec<Record> {
    let entries = fs::read_dir(out).expect("a folder").map(|entry| entry.unwrap().path());
    let files: Vec<PathBuf> = entries.filter(|path| path.to_string_lossy().contains("/events.out.tfevents.")).collect();
    let [file] = &files[..] else { panic!("one file, not {files:?}") };
    let bytes = fs::read(file).unwrap();
    let (mut rest, mut records) = (&bytes[..], Vec::new());
    while !rest.is_empty() {
        let length = checked(&mut rest, 8);
        let data = checked(&mut rest, u64::from_le_bytes(length.try_into().unwrap()) as usize);
        records.push(record_of(data));
    }
    records
}

/// The next bytes of a file, and after them their masked CRC-32C, bit by bit from its polynomial.
fn checked<'a>(rest: &mut &'a [u8], length: usize) -> &'a [u8] {
    let (data, tail) = rest.split_at(length);
    let (sum, tail) = tail.split_at(4);
    let shifted = |crc: u32| if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
    let crc = !data.iter().fold(!0, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), |crc, _| shifted(crc)));
    let masked = crc.rotate_right(15).wrapping_add(0xa282_ead8);
    assert_eq!(masked.to_le_bytes(), sum, "a checksum");
    *rest = tail;
    data
}

fn record_of(message: &[u8]) -> Record {
    let mut record = Record::default();
    for (number, value) in fields(message) {
        match number {
            1 => record.wall_time = f64::from_le_bytes(value.try_into().unwrap()),
            2 => record.step = u64::from_le_bytes(value.try_into().unwrap()),
            3 => record.version = String::from_utf8(value).unwrap(),
            5 => record.scalars = fields(&value).into_iter().map(|(_, value)| scalar(&value)).collect(),
            other => panic!("field {other}"),
        }
    }
    record
}

fn scalar(message: &[u8]) -> (String, f32) {
    let [(1, tag), (2, value)] = &fields(message)[..] else { panic!("{message:?}") };
    (String::from_utf8(tag.clone()).unwrap(), f32::from_le_bytes(value[..].try_into().unwrap()))
}

/// Numbers and raw values of a message's fields; a varint as eight bytes.
fn fields(mut rest: &[u8]) -> Vec<(u64, Vec<u8>)> {
    let mut found = Vec::new();
    while !rest.is_empty() {
        let key = varint(&mut rest);
        let length = match key & 7 {
            0 => {
                found.push((key >> 3, varint(&mut rest).to_le_bytes().to_vec()));
                continue;
            }
            1 => 8,
            2 => varint(&mut rest) as usize,
            5 => 4,
            other => panic!("wire type {other}"),
        };
        let (value, tail) = rest.split_at(length);
        found.push((key >> 3, value.to_vec()));
        rest = tail;
    }
    found
}

fn varint(rest: &mut &[u8]) -> u64 {
    let length = rest.iter().position(|byte| byte & 0x80 == 0).expect("an end") + 1;
    let (bytes, tail) = rest.split_at(length);
    *rest = tail;
    bytes.iter().rev().fold(0, |value, byte| value << 7 | u64::from(byte & 0x7f))
}
