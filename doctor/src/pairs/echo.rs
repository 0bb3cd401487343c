//! One end answers, the other one measures.
//!
//! After both have said [`GREETING`], the one that measures sends orders of nine bytes, a letter and a number: `T` is answered
//! by the time there, in nanoseconds of Unix time; `D` and a length, and so many bytes, by one byte when all are there; `U` and a
//! length by so many bytes. It ends by closing.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::pairs::Way;

/// What both say first; the last letter is the version.
const GREETING: &[u8; 16] = b"lockstep-doctor1";
/// How long an end may say nothing.
const SILENCE: Duration = Duration::from_secs(20);
/// Questions for the time that only warm up.
const WARM: usize = 4;
/// Those that count.
const TIMED: usize = 33;
/// A transfer is repeated with more until it has taken so long.
const LONG_ENOUGH: f64 = 0.15;
/// Or has so many bytes.
const MOST: u64 = 256 << 20;
const LEAST: u64 = 64 << 10;

/// Answers whoever comes, each on a thread of its own, until the listener fails.
pub fn serve(listener: &TcpListener) {
    for stream in listener.incoming() {
        match stream {
            // Who breaks off or says something else is done with.
            Ok(stream) => drop(std::thread::Builder::new().spawn(move || answer(stream))),
            Err(error) if error.kind() == ErrorKind::ConnectionAborted => {}
            Err(_) => return,
        }
    }
}

fn prepare(stream: &TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(SILENCE))?;
    stream.set_write_timeout(Some(SILENCE))
}

fn answer(mut stream: TcpStream) -> std::io::Result<()> {
    prepare(&stream)?;
    let mut greeting = [0; GREETING.len()];
    stream.read_exact(&mut greeting)?;
    if &greeting != GREETING {
        return Ok(());
    }
    stream.write_all(GREETING)?;
    let mut chunk = vec![0; 1 << 16];
    loop {
        let mut order = [0; 9];
        stream.read_exact(&mut order)?;
        let mut number = [0; 8];
        number.copy_from_slice(&order[1..]);
        let length = u64::from_le_bytes(number);
        match order[0] {
            b'T' => stream.write_all(&nanoseconds().to_le_bytes())?,
            b'D' if length <= MOST => {
                take(&mut stream, length, &mut chunk)?;
                stream.write_all(&[1])?;
            }
            b'U' if length <= MOST => give(&mut stream, length, &chunk)?,
            _ => return Ok(()),
        }
    }
}

fn nanoseconds() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

fn take(stream: &mut TcpStream, length: u64, chunk: &mut [u8]) -> std::io::Result<()> {
    let mut left = length;
    while left > 0 {
        let part = usize::try_from(left).unwrap_or(usize::MAX).min(chunk.len());
        stream.read_exact(&mut chunk[..part])?;
        left -= part as u64;
    }
    Ok(())
}

fn give(stream: &mut TcpStream, length: u64, chunk: &[u8]) -> std::io::Result<()> {
    let mut left = length;
    while left > 0 {
        let part = usize::try_from(left).unwrap_or(usize::MAX).min(chunk.len());
        stream.write_all(&chunk[..part])?;
        left -= part as u64;
    }
    Ok(())
}

/// Measures the way to somebody who answers.
///
/// # Errors
/// One sentence without its full stop.
pub fn measure(address: SocketAddr, patience: Duration) -> Result<Way, String> {
    let stream = TcpStream::connect_timeout(&address, patience)
        .map_err(|error| format!("nobody is reached at {address}: {error}"))?;
    measured(stream).map_err(|error| match error.kind() {
        ErrorKind::InvalidData => format!("what listens at {address} is no lockstep doctor"),
        _ => format!("the connection to {address} broke: {error}"),
    })
}

fn measured(mut stream: TcpStream) -> std::io::Result<Way> {
    prepare(&stream)?;
    stream.write_all(GREETING)?;
    let mut greeting = [0; GREETING.len()];
    stream.read_exact(&mut greeting)?;
    if &greeting != GREETING {
        return Err(ErrorKind::InvalidData.into());
    }
    let mut times = Vec::with_capacity(TIMED);
    for round in 0..WARM + TIMED {
        let (taken, ahead) = ask_time(&mut stream)?;
        if round >= WARM {
            times.push((taken, ahead));
        }
    }
    times.sort_by(|one, other| one.0.total_cmp(&other.0));
    let mut chunk = vec![0x5a; 1 << 16];
    Ok(Way {
        milliseconds: times[TIMED / 2].0 * 1e3,
        // The quickest answer had the least time to be delayed on one of its two ways.
        clock_ahead: times[0].1,
        megabits_to: rate(|length| {
            order(&mut stream, b'D', length)?;
            give(&mut stream, length, &chunk)?;
            stream.read_exact(&mut [0])
        })?,
        megabits_from: rate(|length| {
            order(&mut stream, b'U', length)?;
            take(&mut stream, length, &mut chunk)
        })?,
    })
}

fn order(stream: &mut TcpStream, letter: u8, number: u64) -> std::io::Result<()> {
    let mut order = [letter; 9];
    order[1..].copy_from_slice(&number.to_le_bytes());
    stream.write_all(&order)
}

/// Seconds there and back, and seconds by which the clock there is ahead.
fn ask_time(stream: &mut TcpStream) -> std::io::Result<(f64, f64)> {
    let (before, start) = (nanoseconds(), Instant::now());
    order(stream, b'T', 0)?;
    let mut answer = [0; 8];
    stream.read_exact(&mut answer)?;
    let taken = start.elapsed().as_secs_f64();
    let there = u64::from_le_bytes(answer);
    let ahead = (i128::from(there) - i128::from(before)) as f64 / 1e9 - taken / 2.0;
    Ok((taken, ahead))
}

/// Megabits a second of a transfer that is long enough to tell.
fn rate(mut transfer: impl FnMut(u64) -> std::io::Result<()>) -> std::io::Result<f64> {
    let mut length = LEAST;
    loop {
        let start = Instant::now();
        transfer(length)?;
        let seconds = start.elapsed().as_secs_f64();
        if seconds >= LONG_ENOUGH || length >= MOST {
            return Ok(length as f64 * 8e-6 / seconds.max(1e-9));
        }
        length = (length * 4).min(MOST);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_way_on_this_machine_has_a_rate_both_ways_and_one_clock() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || serve(&listener));
        let way = measure(address, SILENCE).unwrap();
        assert!(
            way.megabits_to > 0.0 && way.megabits_from > 0.0 && way.milliseconds > 0.0,
            "{way:?}"
        );
        assert!(way.clock_ahead.abs() < 1.0, "{way:?}");
    }

    #[test]
    fn who_is_not_there_and_who_is_somebody_else_are_told_apart() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let other = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.write_all(b"SSH-2.0-OpenSSH_9.2\r\n").unwrap();
            let _ = stream.read(&mut [0; 64]);
        });
        assert!(measure(address, SILENCE).unwrap_err().contains("no lockstep doctor"));
        other.join().unwrap();
        assert!(measure(address, SILENCE).unwrap_err().contains("nobody is reached"));
    }
}
