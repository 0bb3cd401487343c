//! TensorBoard event files: records of `length (u64) · masked crc of it (u32) · Event message · masked crc of it`,
//! all little-endian, as TensorFlow's `record_writer` and `event.proto` define them.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use prost::Message;

use crate::files::FileError;

#[derive(Clone, PartialEq, Message)]
struct Event {
    #[prost(double, tag = "1")]
    wall_time: f64,
    #[prost(int64, tag = "2")]
    step: i64,
    #[prost(string, optional, tag = "3")]
    file_version: Option<String>,
    #[prost(message, optional, tag = "5")]
    summary: Option<EventSummary>,
}

#[derive(Clone, PartialEq, Message)]
struct EventSummary {
    #[prost(message, repeated, tag = "1")]
    value: Vec<Scalar>,
}

#[derive(Clone, PartialEq, Message)]
struct Scalar {
    #[prost(string, tag = "1")]
    tag: String,
    #[prost(float, tag = "2")]
    simple_value: f32,
}

/// An event file that is being written.
#[derive(Debug)]
pub(super) struct EventFile {
    path: PathBuf,
    file: BufWriter<File>,
}

impl EventFile {
    pub(super) fn create(folder: &Path) -> Result<EventFile, FileError> {
        // TensorBoard takes files with this word in their names and orders them by the number.
        let path = folder.join(format!("events.out.tfevents.{}.lockstep", wall_time() as u64));
        let file = File::create(&path).map_err(|cause| FileError {
            path: path.clone(),
            cause,
        })?;
        let mut events = EventFile {
            path,
            file: BufWriter::new(file),
        };
        let version = Some("brain.Event:2".to_owned());
        events.write(&Event {
            wall_time: wall_time(),
            step: 0,
            file_version: version,
            summary: None,
        })?;
        Ok(events)
    }

    pub(super) fn scalars(&mut self, step: u64, scalars: &[(&str, f64)]) -> Result<(), FileError> {
        let scalar = |(tag, value): &(&str, f64)| Scalar {
            tag: (*tag).to_owned(),
            simple_value: *value as f32,
        };
        let summary = Some(EventSummary {
            value: scalars.iter().map(scalar).collect(),
        });
        let step = i64::try_from(step).unwrap_or(i64::MAX);
        self.write(&Event {
            wall_time: wall_time(),
            step,
            file_version: None,
            summary,
        })
    }

    pub(super) fn flush(&mut self) -> Result<(), FileError> {
        self.file.flush().map_err(|cause| FileError {
            path: self.path.clone(),
            cause,
        })
    }

    fn write(&mut self, event: &Event) -> Result<(), FileError> {
        let record = frame(&event.encode_to_vec());
        self.file.write_all(&record).map_err(|cause| FileError {
            path: self.path.clone(),
            cause,
        })
    }
}

fn frame(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    let mut record = Vec::with_capacity(data.len() + 16);
    record.extend(length);
    record.extend(masked_crc(&length).to_le_bytes());
    record.extend(data);
    record.extend(masked_crc(data).to_le_bytes());
    record
}

/// CRC-32C, rotated and shifted so that a checksum of data that holds checksums stays a good one.
fn masked_crc(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

fn wall_time() -> f64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0.0, |time| time.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    impl EventFile {
        /// Tags and values of the scalars of a step, of what was flushed.
        pub(in crate::files) fn read_scalars(&self, step: i64) -> Vec<(String, f32)> {
            read(&std::fs::read(&self.path).unwrap())
                .into_iter()
                .filter(|event| event.step == step)
                .filter_map(|event| event.summary)
                .flat_map(|summary| summary.value)
                .map(|scalar| (scalar.tag, scalar.simple_value))
                .collect()
        }
    }

    /// Reads a file back as TensorBoard does.
    fn read(bytes: &[u8]) -> Vec<Event> {
        let (mut events, mut rest) = (Vec::new(), bytes);
        while !rest.is_empty() {
            let length = u64::from_le_bytes(rest[..8].try_into().unwrap()) as usize;
            assert_eq!(
                u32::from_le_bytes(rest[8..12].try_into().unwrap()),
                masked_crc(&rest[..8])
            );
            let data = &rest[12..12 + length];
            assert_eq!(
                u32::from_le_bytes(rest[12 + length..16 + length].try_into().unwrap()),
                masked_crc(data)
            );
            events.push(Event::decode(data).unwrap());
            rest = &rest[16 + length..];
        }
        events
    }

    #[test]
    fn an_event_file_reads_back() {
        let folder = tempfile::tempdir().unwrap();
        let mut file = EventFile::create(folder.path()).unwrap();
        file.scalars(7, &[("loss", 1.5), ("lr", 0.25)]).unwrap();
        file.flush().unwrap();
        let events = read(&std::fs::read(&file.path).unwrap());
        assert_eq!(events[0].file_version.as_deref(), Some("brain.Event:2"));
        assert_eq!(events[1].step, 7);
        let values: Vec<_> = events[1]
            .summary
            .iter()
            .flat_map(|s| &s.value)
            .map(|v| (&v.tag[..], v.simple_value))
            .collect();
        assert_eq!(values, [("loss", 1.5), ("lr", 0.25)]);
    }

    #[test]
    fn the_masked_checksum_is_that_of_tensorflow() {
        // CRC-32C of "123456789" is 0xe3069283 (RFC 3720's check value). TensorFlow's rule, by hand:
        // ((crc >> 15) | (crc << 17)) + 0xa282ead8.
        assert_eq!(masked_crc(b"123456789"), 0xc78a_b0e5);
    }
}
