//! `lockstep data prepare`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use lockstep_data::{DataError, Options, prepare as prepare_data};

use crate::cli::PrepareArguments;
use crate::ending::Ending;

/// Prepares text and says what came of it. Ctrl-C leaves nothing behind.
pub(crate) fn prepare(arguments: PrepareArguments) -> Result<(), Ending> {
    let options = Options {
        inputs: arguments.inputs,
        out: arguments.out,
        tokenizer: arguments.tokenizer,
    };
    let cancel = Arc::new(AtomicBool::new(false));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .map_err(|error| Ending::Failed(format!("the system gives no thread: {error}")))?;
    let flag = cancel.clone();
    runtime.spawn(async move {
        if tokio::signal::ctrl_c().await.is_ok() {
            flag.store(true, Ordering::Relaxed);
        }
    });
    let summary = prepare_data(&options, &cancel).map_err(|error| match error {
        DataError::Interrupted => Ending::failed(error),
        _ => Ending::bad_input(error),
    })?;
    println!(
        "{}: {} training tokens and {} validation tokens, vocabulary {}, from {} bytes in {} file{}",
        summary.out.display(),
        summary.train_tokens,
        summary.validation_tokens,
        summary.vocab,
        summary.bytes,
        summary.documents,
        if summary.documents == 1 { "" } else { "s" }
    );
    Ok(())
}
