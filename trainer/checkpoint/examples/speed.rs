//! How fast a checkpoint goes into a folder and out again, beside what the same disk and the same core do without it:
//! `cargo run --release -p lockstep-checkpoint --example speed -- FOLDER [MEBIBYTES]`.

use std::io::Write;
use std::path::Path;
use std::time::Instant;

use lockstep_checkpoint::*;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut words = std::env::args().skip(1);
    let folder = words.next().ok_or("give a folder")?;
    let mebibytes: usize = words.next().map_or(Ok(512), |text| text.parse())?;
    let elements = mebibytes << 18;
    let values: Vec<f32> = (0..elements).map(|n| (n as f32).sin()).collect();
    let rate = |what: &str, began: Instant| {
        let seconds = began.elapsed().as_secs_f64();
        println!("{what:<34} {:>7.0} MB/s", elements as f64 * 4e-6 / seconds);
        seconds
    };

    let folder = Path::new(&folder);
    std::fs::create_dir_all(folder)?;
    let plain = folder.join("plain");
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    let began = Instant::now();
    let mut file = std::fs::File::create(&plain)?;
    file.write_all(&bytes)?;
    file.sync_all()?;
    let plain_seconds = rate("a plain file, written and flushed", began);
    std::fs::remove_file(&plain)?;
    let began = Instant::now();
    std::hint::black_box(ContentHash::of(&bytes));
    let hash_seconds = rate("BLAKE3, one core", began);
    drop(bytes);

    // Half in one hidden matrix, half in many blocks.
    let tensors = vec![
        TensorEntry::new("hidden", &[elements / 2048, 1024], TensorKind::Hidden, &["master"]),
        TensorEntry::new("other", &[elements / 2], TensorKind::Other, &["master"]),
    ];
    let place = tempfile::tempdir_in(folder)?;
    let store = Store::folder(place.path(), Limits::default())?;
    let began = Instant::now();
    let mut part = Part::new();
    part.add(&tensors[0], "master", 0..elements / 2, &values[..elements / 2])?;
    part.add(&tensors[1], "master", 0..elements / 2, &values[elements / 2..])?;
    let part = part.seal()?;
    rate("sealed (two passes of BLAKE3)", began);
    let flushed = Instant::now();
    let entry = store.write(&part)?;
    rate("written and flushed", flushed);
    let written_seconds = rate("sealed, written and flushed", began);
    let run = RunValues {
        run_id: "speed".to_owned(),
        config_hash: String::new(),
        config_toml: String::new(),
        step: 1,
        term: 1,
        generation: 1,
        cursor: 0,
        schedule_version: 0,
        words: Default::default(),
        parameter_hash: String::new(),
    };
    let began = Instant::now();
    let name = store.commit(&Manifest::new(run, tensors, vec![entry])?)?;
    println!("{:<34} {:>7.1} ms", "committed", began.elapsed().as_secs_f64() * 1e3);
    let reader = store.open_checkpoint(name)?;
    let began = Instant::now();
    reader.verify_all()?;
    let verified_seconds = rate("every byte verified", began);
    let mut read = vec![0.0; elements / 2];
    let began = Instant::now();
    for tensor in ["hidden", "other"] {
        reader.read(tensor, "master", 0..elements / 2, &mut read)?;
    }
    rate("read and verified", began);
    println!(
        "sealed and written: {:.2} times a plain file; verified: {:.2} times one BLAKE3",
        written_seconds / plain_seconds,
        verified_seconds / hash_seconds
    );
    Ok(())
}
