//! Shared libraries of NVIDIA's, opened at run time and kept.

use std::error::Error as _;
use std::ffi::OsStr;

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};

use crate::KernelError;

/// Finds a library only if the process has loaded it already (glibc's number).
const RTLD_NOLOAD: i32 = 4;

/// An open library and its name for errors. It stays open for the life of the process: its functions are kept as plain
/// pointers, and libraries of CUDA's do not bear to be closed.
pub(crate) struct OpenLibrary {
    library: Library,
    name: String,
}

fn words(error: &libloading::Error) -> String {
    error.source().map_or(error.to_string(), |words| words.to_string())
}

impl OpenLibrary {
    /// The copy that the process has loaded already, else the one that the dynamic linker finds.
    pub(crate) fn open(name: impl AsRef<OsStr>, advice: &'static str) -> Result<OpenLibrary, KernelError> {
        let name = name.as_ref();
        // SAFETY: initialisers of NVIDIA's libraries ask nothing of their caller.
        let opened = unsafe {
            Library::open(Some(name), RTLD_NOW | RTLD_NOLOAD)
                .or_else(|_| Library::open(Some(name), RTLD_NOW | RTLD_GLOBAL))
        };
        let name = name.to_string_lossy().into_owned();
        match opened {
            Ok(library) => Ok(OpenLibrary { library, name }),
            Err(error) => Err(KernelError::NoLibrary {
                library: name,
                reason: words(&error),
                advice,
            }),
        }
    }

    /// The function `name`.
    ///
    /// # Safety
    /// `F` must be a function pointer of the library's own signature.
    pub(crate) unsafe fn function<F: Copy>(&self, name: &'static str) -> Result<F, KernelError> {
        // SAFETY: the caller names the right type.
        match unsafe { self.library.get::<F>(name.as_bytes()) } {
            Ok(symbol) => Ok(*symbol),
            Err(error) => Err(KernelError::NoFunction {
                library: self.name.clone(),
                function: name,
                reason: words(&error),
            }),
        }
    }

    /// Keeps it open for the life of the process.
    pub(crate) fn keep(self) {
        let _ = self.library.into_raw();
    }
}
