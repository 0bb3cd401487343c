//! Cores, the instructions they know, and those of them that this process may use.

use rustix::thread::sched_getaffinity;
use serde::Serialize;

use crate::facts::{Places, groups, text_of};

/// Variables that say how many threads a tensor library has.
const THREADS: [&str; 4] = [
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "OMP_THREAD_LIMIT",
];
/// Variables that bind threads to cores, each process by itself.
const BINDING: [&str; 5] = [
    "OMP_PROC_BIND",
    "OMP_PLACES",
    "GOMP_CPU_AFFINITY",
    "KMP_AFFINITY",
    "KMP_HW_SUBSET",
];

/// The processors of a machine.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Processors {
    /// As the kernel calls them.
    pub model: String,
    /// Cores that are switched on.
    pub online: u32,
    /// Those of them that this process may run on.
    pub allowed: u32,
    /// Cores' worth of time that a control group allows.
    pub quota: Option<f64>,
    /// Whether they know AVX2 and FMA.
    pub avx2: bool,
    /// Whether they know the parts of AVX-512 that kernels use.
    pub avx512: bool,
    /// Whether they multiply bf16 themselves.
    pub bf16: bool,
    /// Variables that set numbers of threads.
    pub threads: Vec<(String, String)>,
    /// Variables that bind threads to cores.
    pub binding: Vec<(String, String)>,
}

impl Processors {
    /// Looks. The variables are asked of `environment`.
    pub fn look(places: &Places, environment: &dyn Fn(&str) -> Option<String>) -> Processors {
        let text = text_of(&places.proc.join("cpuinfo")).unwrap_or_default();
        let set = |names: &[&str]| -> Vec<(String, String)> {
            let set = names
                .iter()
                .filter_map(|name| Some(((*name).to_owned(), environment(name)?)));
            set.collect()
        };
        let mut processors = of_text(&text);
        processors.allowed = sched_getaffinity(None).map_or(processors.online, |set| set.count());
        processors.quota = groups::cpu_quota(places);
        processors.threads = set(&THREADS);
        processors.binding = set(&BINDING);
        processors
    }
}

fn of_text(text: &str) -> Processors {
    let value = |key: &str| {
        let line = text
            .lines()
            .find(|line| line.split(':').next().is_some_and(|name| name.trim() == key));
        line.and_then(|line| Some(line.split_once(':')?.1.trim().to_owned()))
    };
    let [avx2, avx512, bf16] = match value("flags") {
        Some(flags) => {
            let has = |name: &&str| flags.split_whitespace().any(|flag| flag == *name);
            let avx512 = ["avx512f", "avx512bw", "avx512dq", "avx512vl"];
            [
                ["avx2", "fma"].iter().all(has),
                avx512.iter().all(has),
                ["avx512_bf16", "amx_bf16"].iter().any(has),
            ]
        }
        // Not every kernel, and not every sandbox, tells them.
        None => asked(),
    };
    let online = text.lines().filter(|line| line.starts_with("processor")).count();
    Processors {
        model: value("model name").unwrap_or_else(|| std::env::consts::ARCH.to_owned()),
        online: u32::try_from(online).unwrap_or(u32::MAX),
        avx2,
        avx512,
        bf16,
        ..Processors::default()
    }
}

/// The processor's own words: AVX2 with FMA, AVX-512, products in bf16.
#[cfg(target_arch = "x86_64")]
fn asked() -> [bool; 3] {
    use std::is_x86_feature_detected as has;
    [
        has!("avx2") && has!("fma"),
        has!("avx512f") && has!("avx512bw") && has!("avx512dq") && has!("avx512vl"),
        has!("avx512bf16"),
    ]
}

#[cfg(not(target_arch = "x86_64"))]
fn asked() -> [bool; 3] {
    [false; 3]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instructions_and_cores_are_read_as_the_kernel_writes_them() {
        let one = |flags: &str| format!("processor\t: 0\nmodel name\t: Some CPU @ 2GHz\nflags\t\t: fpu {flags}\n\n");
        let old = of_text(&(one("avx") + &one("avx")));
        assert_eq!((old.online, old.avx2, old.bf16), (2, false, false));
        assert_eq!(old.model, "Some CPU @ 2GHz");
        let new = of_text(&one("avx2 fma avx512f avx512bw avx512dq avx512vl avx512_bf16"));
        assert!(new.avx2 && new.avx512 && new.bf16);
        assert!(of_text(&one("avx2 fma amx_bf16")).bf16);
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn where_the_kernel_tells_nothing_the_processor_does() {
        let untold = of_text("");
        assert_eq!(
            untold.avx2,
            std::is_x86_feature_detected!("avx2") && std::is_x86_feature_detected!("fma")
        );
        assert_eq!(untold.online, 0);
    }
}
