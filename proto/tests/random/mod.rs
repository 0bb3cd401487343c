//! Messages of any type of the protocol, made by their descriptors, and bytes that are almost such a message.
#![allow(dead_code)] // Each test file uses its part.

use lockstep_proto::FILE_DESCRIPTOR_SET;
use prost_reflect::{DescriptorPool, DynamicMessage, FieldDescriptor, Kind, MessageDescriptor, Value};
use rand::Rng;
use rand::rngs::StdRng;

/// Every message of the protocol.
pub(crate) fn messages() -> Vec<MessageDescriptor> {
    let pool = DescriptorPool::decode(FILE_DESCRIPTOR_SET).unwrap();
    let own = |message: &MessageDescriptor| message.full_name().starts_with("lockstep.v1.");
    pool.all_messages().filter(own).collect()
}

/// A message of that type: every field is there or not, and has an ordinary value or one at the end of its range.
pub(crate) fn message(of: &MessageDescriptor, random: &mut StdRng, depth: u32) -> DynamicMessage {
    let mut message = DynamicMessage::new(of.clone());
    for field in of.fields() {
        if random.random_bool(0.7) {
            let value = match field.is_list() {
                true => {
                    let count = if depth == 0 { 0 } else { random.random_range(0..4) };
                    Value::List((0..count).map(|_| value(&field, random, depth)).collect())
                }
                false => value(&field, random, depth),
            };
            message.set_field(&field, value);
        }
    }
    message
}

fn value(field: &FieldDescriptor, random: &mut StdRng, depth: u32) -> Value {
    let whole = [
        0,
        1,
        2,
        3,
        5,
        1 << 31,
        (1 << 32) - 1,
        1 << 40,
        1 << 63,
        u64::MAX - 1,
        u64::MAX,
    ];
    let whole = match random.random_bool(0.6) {
        true => random.random_range(0..8),
        false => whole[random.random_range(0..whole.len())],
    };
    let numbers = [
        0.0,
        -0.0,
        1.5,
        -1e300,
        f64::INFINITY,
        f64::NEG_INFINITY,
        f64::NAN,
        f64::MIN_POSITIVE,
    ];
    let length = [0, 1, 7, 31, 32, 33, 64][random.random_range(0..7)];
    match field.kind() {
        Kind::Bool => Value::Bool(random.random()),
        Kind::Double => Value::F64(numbers[random.random_range(0..numbers.len())]),
        Kind::Float => Value::F32(numbers[random.random_range(0..numbers.len())] as f32),
        Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => Value::I32(whole as i32),
        Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => Value::I64(whole as i64),
        Kind::Uint32 | Kind::Fixed32 => Value::U32(whole as u32),
        Kind::Uint64 | Kind::Fixed64 => Value::U64(whole),
        Kind::String => {
            let letters = ["a", "trainer-0", "", "é", "\0", "\u{10ffff}", "x.y/z"];
            Value::String(letters[random.random_range(0..letters.len())].to_owned())
        }
        Kind::Bytes => Value::Bytes(vec![random.random(); length].into()),
        Kind::Enum(_) => Value::EnumNumber(whole as i32),
        Kind::Message(of) if depth > 0 => Value::Message(message(&of, random, depth - 1)),
        Kind::Message(of) => Value::Message(DynamicMessage::new(of)),
    }
}

/// The same bytes with some of them changed, cut off, or said twice.
pub(crate) fn mutated(mut bytes: Vec<u8>, random: &mut StdRng) -> Vec<u8> {
    for _ in 0..random.random_range(0..4) {
        if bytes.is_empty() {
            bytes.push(random.random());
        }
        let at = random.random_range(0..bytes.len());
        match random.random_range(0..6) {
            0 => bytes[at] ^= 1 << random.random_range(0..8),
            1 => bytes[at] = random.random(),
            2 => bytes.truncate(at),
            3 => bytes.insert(at, random.random()),
            4 => {
                let again = bytes[at..].to_vec();
                bytes.extend(again);
            }
            // A length that nothing follows.
            _ => bytes.splice(at.., [0xff, 0xff, 0xff, 0xff, 0x7f]).for_each(drop),
        }
    }
    bytes.truncate(1 << 16);
    bytes
}

/// Where a test begins, printed and settable; and how often it does what it does.
pub(crate) fn seed_and_count(ordinary: u64) -> (u64, u64) {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    let seed = number("LOCKSTEP_FUZZ_SEED").unwrap_or_else(rand::random);
    let count = number("LOCKSTEP_FUZZ").unwrap_or(ordinary);
    println!("LOCKSTEP_FUZZ_SEED={seed} LOCKSTEP_FUZZ={count}");
    (seed, count)
}
