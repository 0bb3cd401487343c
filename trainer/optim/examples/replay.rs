//! `replay CASE.toml IN.safetensors OUT.safetensors`: recorded gradients through the optimiser that training runs.
//!
//! CASE: `lr = NUMBER`, `hidden = [tensor names]`, and an `[optimizer]` table with the keys of a run config.
//! IN, float32: `param.NAME`, `grad.K.NAME` for steps K = 0…, `loss` (one value a step).
//! OUT, float32: `param.K.NAME` after step K, `effective_lr` (one value a step).

use std::process::ExitCode;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [case, input, output] = &words[..] else {
        eprintln!("usage: replay CASE.toml IN.safetensors OUT.safetensors");
        return ExitCode::from(2);
    };
    match run(case, input, output) {
        Ok(()) => ExitCode::SUCCESS,
        Err(sentence) => {
            eprintln!("{sentence}");
            ExitCode::from(2)
        }
    }
}

fn run(case: &str, input: &str, output: &str) -> Result<(), String> {
    // The same bits on any machine with the same libraries: one thread.
    tch::set_num_threads(1);
    let text = std::fs::read_to_string(case).map_err(|error| format!("{case}: {error}"))?;
    let recorded = std::fs::read(input).map_err(|error| format!("{input}: {error}"))?;
    let results = lockstep_optim::replay::replay(&text, case, &recorded).map_err(|error| error.to_string())?;
    std::fs::write(output, results).map_err(|error| format!("{output}: {error}"))
}
