//! Devices that are known by their data sheets, for predictions of machines that are not at hand.
//!
//! Way of data: a device's name → [`Device`] → [`rates`] of a config there. Nothing of it is measured by us: products are taken
//! to reach [`SHARE_OF_PEAK`] of the data sheet, passes over memory [`SHARE_OF_BANDWIDTH`] of it.

use lockstep_config::{Precision, RunConfig};

use crate::plan::rates::{Line, Prediction, Rates};
use crate::plan::work::Work;

/// What products reach of the peak: well-tuned training of transformers reports 0.35 to 0.5.
const SHARE_OF_PEAK: f64 = 0.4;
/// What passes over memory reach of the bandwidth.
const SHARE_OF_BANDWIDTH: f64 = 0.8;
/// Bytes of a process with its CUDA context and the libraries' workspaces.
const PROCESS: f64 = (1u64 << 30) as f64;
/// Milliseconds of three exchanges of slots, with the read-backs before them.
const SLOTS_MS: f64 = 0.5;

/// A device by its data sheet.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Device {
    /// As it is typed.
    pub(super) name: &'static str,
    /// Dense bf16 products, 10¹² operations a second.
    bf16: f64,
    /// fp32 products without TF32, 10¹² operations a second.
    fp32: f64,
    /// Memory, GiB.
    memory: u64,
    /// Its bandwidth, GB/s.
    bandwidth: f64,
    /// To another device of the same host, one way, GB/s.
    link: f64,
}

/// NVIDIA's data sheets of the SXM forms, and of PCIe cards for the last two.
const DEVICES: [Device; 6] = [
    Device {
        name: "a100",
        bf16: 312.0,
        fp32: 19.5,
        memory: 80,
        bandwidth: 2039.0,
        link: 300.0,
    },
    Device {
        name: "h100",
        bf16: 989.0,
        fp32: 67.0,
        memory: 80,
        bandwidth: 3350.0,
        link: 450.0,
    },
    Device {
        name: "h200",
        bf16: 989.0,
        fp32: 67.0,
        memory: 141,
        bandwidth: 4800.0,
        link: 450.0,
    },
    Device {
        name: "b200",
        bf16: 2250.0,
        fp32: 75.0,
        memory: 180,
        bandwidth: 7700.0,
        link: 900.0,
    },
    Device {
        name: "l40s",
        bf16: 362.0,
        fp32: 91.6,
        memory: 48,
        bandwidth: 864.0,
        link: 32.0,
    },
    Device {
        name: "rtx4090",
        bf16: 165.0,
        fp32: 82.6,
        memory: 24,
        bandwidth: 1008.0,
        link: 32.0,
    },
];

/// The device of a name; none if it is not known.
pub(super) fn device(name: &str) -> Option<Device> {
    DEVICES.into_iter().find(|device| device.name == name)
}

/// The names that are known.
pub(super) fn names() -> String {
    DEVICES.map(|device| device.name).join(", ")
}

impl Device {
    /// Bytes of memory.
    pub(super) fn memory(&self) -> u64 {
        self.memory << 30
    }

    /// What one of them does of a config. Multiplications are counted: 2·elements·tokens for a product forward, twice that
    /// backward; 4·T·width a token for attention. Activations are those of arXiv 2205.05198, section 4, without attention
    /// scores, which are not kept.
    pub(super) fn rates(&self, config: &RunConfig, work: &Work, link: Option<f64>) -> Rates {
        let peak = match config.run.precision {
            Precision::Bf16 => self.bf16,
            Precision::Fp32 => self.fp32,
        };
        let (layers, width) = (f64::from(config.model.layers.max(1)), f64::from(config.model.width));
        let sequence = f64::from(config.data.sequence_length);
        let tokens = f64::from(config.batch.micro_batch) * sequence;
        // The head reads the embedding's matrix; positions and gains take part in no product.
        let head = work.parameters.saturating_sub(work.hidden) as f64;
        let in_layers = work.hidden as f64 / layers;
        let ms_of_operations = |count: f64| count / (peak * 1e12 * SHARE_OF_PEAK) * 1e3;
        let forward = Line {
            fixed: ms_of_operations(2.0 * head * tokens),
            layer: ms_of_operations((2.0 * in_layers + 2.0 * sequence * width) * tokens),
        };
        let ms_of_bytes = |bytes: f64| bytes / (self.bandwidth * 1e9 * SHARE_OF_BANDWIDTH) * 1e3;
        let size = match config.run.precision {
            Precision::Bf16 => 2.0,
            Precision::Fp32 => 4.0,
        };
        let polar_steps = f64::from(config.optimizer.polar.steps);
        let link = 1e6 / (link.unwrap_or(self.link) * 1e9) * 1e3;
        Rates {
            forward,
            backward: Line {
                fixed: 2.0 * forward.fixed,
                layer: 2.0 * forward.layer,
            },
            norms: ms_of_bytes(4e6),
            addition: ms_of_bytes(12e6),
            // Each iteration: X·Xᵀ, its square, and the product with X, at most 2 · 3 · max·min².
            polar: ms_of_operations(6.0 * polar_steps * 1e9),
            // Gradient, moment, master and copy, read and written.
            apply: ms_of_bytes(32e6),
            reduce: link,
            gather: link,
            slots: SLOTS_MS,
            process: PROCESS,
            activations: Line {
                fixed: tokens * head / width * (size + 4.0),
                layer: 17.0 * size * width * tokens,
            },
        }
    }
}

/// Takes from a prediction what hides: reductions behind the last backward, gathers behind the next forward.
pub(super) fn overlapped(mut prediction: Prediction, work: &Work) -> Prediction {
    let runs = work.most(|rank| u64::from(rank.micro_batches)).max(1) as f64;
    let times = &mut prediction.times;
    let hidden = |of: f64, behind: f64| of - (of - behind / runs).max(0.0);
    let hides = hidden(times.reduce, times.backward) + hidden(times.gather, times.forward);
    times.reduce = (times.reduce - times.backward / runs).max(0.0);
    times.gather = (times.gather - times.forward / runs).max(0.0);
    let before = times.step;
    times.step -= hides;
    prediction.tokens_per_second *= before / times.step.max(f64::MIN_POSITIVE);
    prediction
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(sets: &[&str]) -> RunConfig {
        let text = "[run]\nname = \"a\"\nsteps = 1\nlanes = 8\nprecision = \"bf16\"\n[data]\npath = \"unused\"\n\
                    sequence_length = 1024\n[model]\nkind = \"gpt2\"\nlayers = 12\nheads = 12\nwidth = 768\n\
                    [batch]\nmicro_batch = 8\nschedule = 64\n[learning_rate]\nschedule = 0.01\n\
                    [optimizer]\nmethod = \"muon\"\n";
        let sets: Vec<String> = sets.iter().map(|set| (*set).to_owned()).collect();
        RunConfig::parse(text, "devices.toml", &sets).unwrap()
    }

    fn predicted(name: &str, ranks: u32, link: Option<f64>) -> Prediction {
        let config = config(&[]);
        let work = Work::of(&config, 50_304, (ranks, 8)).unwrap();
        let rates = device(name).unwrap().rates(&config, &work, link);
        overlapped(crate::plan::rates::predict(&config, &work, &rates), &work)
    }

    #[test]
    fn a_faster_device_a_faster_link_and_more_ranks_take_no_longer() {
        let step = |name, ranks, link| predicted(name, ranks, link).times.step;
        assert!(step("h100", 8, None) < step("a100", 8, None));
        assert!(step("h100", 8, None) < step("h100", 1, None));
        assert!(step("h100", 8, None) <= step("h100", 8, Some(1.0)));
        assert!(device("abacus").is_none() && names().contains("h200"));
    }

    #[test]
    fn parts_add_up_to_the_step_also_where_some_of_it_hides() {
        for link in [None, Some(0.1)] {
            let times = predicted("a100", 4, link).times;
            let parts = times.forward + times.backward + times.norms + times.lanes + times.reduce + times.polar;
            let parts = parts + times.apply + times.slots + times.gather;
            assert!((parts - times.step).abs() < 1e-9 * parts, "{times:?}");
        }
    }
}
