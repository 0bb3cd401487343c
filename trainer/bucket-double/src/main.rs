//! `bucket-double ROOT SEED`: serves a folder by the S3 protocol. It says first by which variables clients find it, a line
//! each, and then nothing; each line that it reads is the trouble of that moment on ([`Trouble`]), and it ends with its input.

use std::io::{BufRead, Write};
use std::path::Path;
use std::process::ExitCode;

use bucket_double::{Server, Trouble};

fn serve() -> Result<(), String> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [root, seed] = &words[..] else {
        return Err(format!("it takes a folder and a seed, and was given {words:?}"));
    };
    let seed = seed
        .parse()
        .map_err(|error| format!("the seed {seed:?} is no number: {error}"))?;
    let server = Server::start(Path::new(root), seed).map_err(|error| format!("{root} cannot be served: {error}"))?;
    let mut lines: String = server
        .settings()
        .iter()
        .map(|(name, value)| format!("{name}={value}\n"))
        .collect();
    lines.push('\n');
    // In one go: who sees the empty line has all of them.
    let said = std::io::stdout().write_all(lines.as_bytes());
    said.map_err(|error| format!("it cannot say where it is: {error}"))?;
    for line in std::io::stdin().lock().lines() {
        let line = line.map_err(|error| format!("its orders cannot be read: {error}"))?;
        server.set(line.parse::<Trouble>()?);
    }
    Ok(())
}

fn main() -> ExitCode {
    match serve() {
        Ok(()) => ExitCode::SUCCESS,
        Err(sentence) => {
            eprintln!("bucket-double: {sentence}");
            ExitCode::FAILURE
        }
    }
}
