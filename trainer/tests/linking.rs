//! One binary serves CPU and GPU: it links libtorch, and nothing of CUDA, which it opens at run time.
#![allow(clippy::unwrap_used, missing_docs)]

use object::read::elf::{Dyn as _, FileHeader as _, ProgramHeader as _};
use object::{Endianness, elf};

/// The libraries that an ELF file names as needed.
fn needed(file: &[u8]) -> Vec<String> {
    let header = elf::FileHeader64::<Endianness>::parse(file).unwrap();
    let endian = header.endian().unwrap();
    let segments = header.program_headers(endian, file).unwrap();
    let sections = header.sections(endian, file).unwrap();
    let (_, index) = sections.dynamic(endian, file).unwrap().unwrap();
    let strings = sections.strings(endian, file, index).unwrap();
    let entries = segments
        .iter()
        .find_map(|segment| segment.dynamic(endian, file).unwrap());
    entries
        .unwrap()
        .iter()
        .filter(|entry| entry.tag32(endian) == Some(elf::DT_NEEDED))
        .map(|entry| String::from_utf8(entry.string(endian, strings).unwrap().to_vec()).unwrap())
        .collect()
}

#[test]
fn the_trainer_links_libtorch_and_nothing_of_cuda() {
    let file = std::fs::read(env!("CARGO_BIN_EXE_lockstep-trainer")).unwrap();
    let libraries = needed(&file);
    println!("{libraries:?}");
    assert!(libraries.iter().any(|name| name == "libtorch_cpu.so"), "{libraries:?}");
    for name in &libraries {
        for word in ["cuda", "nccl", "cublas", "cudnn", "nvrtc"] {
            assert!(!name.contains(word), "the trainer links to {name}");
        }
    }
}
