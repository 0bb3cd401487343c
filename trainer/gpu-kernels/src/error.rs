//! What can go wrong with kernels: a library that is missing, source that does not compile, a driver that refuses.

/// Why a kernel cannot be compiled, loaded or launched.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KernelError {
    /// A library of NVIDIA's could not be opened.
    #[error("{library} could not be opened: {reason}; {advice}")]
    NoLibrary {
        /// Its name or path.
        library: String,
        /// The dynamic linker's words.
        reason: String,
        /// What to do.
        advice: &'static str,
    },
    /// A library lacks a function.
    #[error("{library} has no function {function}: {reason}; it is too old, or not the library that its name says")]
    NoFunction {
        /// The library.
        library: String,
        /// The function.
        function: &'static str,
        /// The dynamic linker's words.
        reason: String,
    },
    /// The run-time compiler refused.
    #[error("NVRTC, in {call} of {source_name}: {text} (code {code})\n{log}")]
    Compiler {
        /// Which of its functions.
        call: &'static str,
        /// Which source.
        source_name: &'static str,
        /// NVRTC's code.
        code: i32,
        /// NVRTC's words.
        text: String,
        /// What the compiler printed.
        log: String,
    },
    /// The driver refused.
    #[error("the CUDA driver, in {call}: {text} (code {code})")]
    Driver {
        /// Which of its functions.
        call: String,
        /// The driver's code.
        code: i32,
        /// The driver's words.
        text: String,
    },
    /// There is no machine code for the device.
    #[error(
        "there are no kernels for compute capability {major}.{minor}; libtorch has code for 7.5, 8.x, 9.0, 10.x and 12.x"
    )]
    Architecture {
        /// The device's generation.
        major: u32,
        /// Its version.
        minor: u32,
    },
    /// A launch that cannot be meant.
    #[error("{0}")]
    Launch(String),
}
