//! NVIDIA's run-time compiler: CUDA C++ in, machine code or PTX out. Needs neither a GPU nor a driver.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::Path;
use std::ptr::null;

use crate::library::OpenLibrary;
use crate::{KernelError, Source};

/// Comes with libtorch's CUDA libraries, which bring its builtins along.
const SONAME: &str = "libnvrtc.so.13";
const BUILTINS: &str = "libnvrtc-builtins.so.13.0";
const ADVICE: &str =
    "it comes with libtorch's CUDA libraries (package nvidia-cuda-nvrtc 13), which must be loaded before";

/// An architecture that machine code is made for: 90 is sm_90.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Architecture(u32);

impl Architecture {
    /// Those that libtorch has code for.
    pub const ALL: [Architecture; 6] = [
        Architecture(75),
        Architecture(80),
        Architecture(86),
        Architecture(90),
        Architecture(100),
        Architecture(120),
    ];

    /// The one whose code a device runs: the newest of its generation that is not newer than it (8.9 runs 8.6's).
    pub fn of_capability(major: u32, minor: u32) -> Result<Architecture, KernelError> {
        Architecture::ALL
            .into_iter()
            .rfind(|a| a.0 / 10 == major && a.0 % 10 <= minor)
            .ok_or(KernelError::Architecture { major, minor })
    }

    /// Its number.
    pub fn number(self) -> u32 {
        self.0
    }
}

type Program = *mut c_void;
type Code = c_int;
type SizeOf = unsafe extern "C" fn(Program, *mut usize) -> Code;
type TextOf = unsafe extern "C" fn(Program, *mut c_char) -> Code;

/// The compiler's functions.
pub struct Nvrtc {
    version: (i32, i32),
    error_string: unsafe extern "C" fn(Code) -> *const c_char,
    create: unsafe extern "C" fn(
        *mut Program,
        *const c_char,
        *const c_char,
        c_int,
        *const *const c_char,
        *const *const c_char,
    ) -> Code,
    compile: unsafe extern "C" fn(Program, c_int, *const *const c_char) -> Code,
    destroy: unsafe extern "C" fn(*mut Program) -> Code,
    log_size: SizeOf,
    log: TextOf,
    code_size: SizeOf,
    code: TextOf,
    ptx_size: SizeOf,
    ptx: TextOf,
}

/// A program of the compiler, destroyed when it is dropped.
struct Job<'a> {
    nvrtc: &'a Nvrtc,
    program: Program,
    source: &'static str,
}

impl Drop for Job<'_> {
    fn drop(&mut self) {
        // SAFETY: made by `create`, destroyed once.
        unsafe { (self.nvrtc.destroy)(&mut self.program) };
    }
}

impl Job<'_> {
    /// Bytes of one of the compiler's outputs.
    fn output(&self, call: &'static str, size: SizeOf, text: TextOf) -> Result<Vec<u8>, KernelError> {
        let mut bytes = 0;
        // SAFETY: the program is live, the out pointer is valid.
        let code = unsafe { size(self.program, &mut bytes) };
        self.nvrtc.check(call, self.source, code, "")?;
        let mut output = vec![0u8; bytes];
        // SAFETY: the buffer has the size that the compiler asked for.
        let code = unsafe { text(self.program, output.as_mut_ptr().cast()) };
        self.nvrtc.check(call, self.source, code, "")?;
        Ok(output)
    }
}

impl Nvrtc {
    /// The compiler that libtorch's CUDA libraries have loaded, else the one that the dynamic linker finds.
    pub fn load() -> Result<Nvrtc, KernelError> {
        Nvrtc::from_library(OpenLibrary::open(SONAME, ADVICE)?)
    }

    /// The compiler of a folder, or of a file with its builtins beside it.
    pub fn load_from(path: &Path) -> Result<Nvrtc, KernelError> {
        let (folder, file) = if path.is_dir() {
            (path, path.join(SONAME))
        } else {
            (path.parent().unwrap_or(Path::new(".")), path.to_path_buf())
        };
        // The compiler opens its builtins by name when it compiles, and finds them only if they are loaded already.
        OpenLibrary::open(folder.join(BUILTINS), ADVICE)?.keep();
        Nvrtc::from_library(OpenLibrary::open(file, ADVICE)?)
    }

    fn from_library(library: OpenLibrary) -> Result<Nvrtc, KernelError> {
        type Version = unsafe extern "C" fn(*mut c_int, *mut c_int) -> Code;
        // SAFETY: the types are those of nvrtc.h, here and below.
        let version: Version = unsafe { library.function("nvrtcVersion")? };
        let (mut major, mut minor) = (0, 0);
        // SAFETY: both out pointers are valid.
        let code = unsafe { version(&mut major, &mut minor) };
        // SAFETY: as above.
        let nvrtc = unsafe {
            Nvrtc {
                version: (major, minor),
                error_string: library.function("nvrtcGetErrorString")?,
                create: library.function("nvrtcCreateProgram")?,
                compile: library.function("nvrtcCompileProgram")?,
                destroy: library.function("nvrtcDestroyProgram")?,
                log_size: library.function("nvrtcGetProgramLogSize")?,
                log: library.function("nvrtcGetProgramLog")?,
                code_size: library.function("nvrtcGetCUBINSize")?,
                code: library.function("nvrtcGetCUBIN")?,
                ptx_size: library.function("nvrtcGetPTXSize")?,
                ptx: library.function("nvrtcGetPTX")?,
            }
        };
        library.keep();
        nvrtc.check("nvrtcVersion", "no source", code, "")?;
        Ok(nvrtc)
    }

    /// Its version: (13, 0).
    pub fn version(&self) -> (i32, i32) {
        self.version
    }

    fn check(&self, call: &'static str, source: &'static str, code: Code, log: &str) -> Result<(), KernelError> {
        if code == 0 {
            return Ok(());
        }
        // SAFETY: gives a NUL-terminated string of static lifetime for any code.
        let text = unsafe { CStr::from_ptr((self.error_string)(code)) };
        Err(KernelError::Compiler {
            call,
            source_name: source,
            code,
            text: text.to_string_lossy().into_owned(),
            log: log.to_owned(),
        })
    }

    /// Runs the compiler over `text`. No contraction, no flushing of subnormals: the kernels' bits are the source's.
    fn run(&self, name: &'static str, text: &str, architecture: &str) -> Result<Job<'_>, KernelError> {
        let refuse = |_| KernelError::Launch(format!("the source of {name} holds a NUL byte"));
        let text = CString::new(text).map_err(refuse)?;
        let c_name = CString::new(name).map_err(refuse)?;
        let architecture = CString::new(format!("--gpu-architecture={architecture}")).map_err(refuse)?;
        let options = [
            architecture.as_ptr(),
            c"--fmad=false".as_ptr(),
            c"--ftz=false".as_ptr(),
            c"--std=c++17".as_ptr(),
        ];
        let mut program = std::ptr::null_mut();
        // SAFETY: strings are NUL-terminated and live for the call; there are no headers.
        let code = unsafe { (self.create)(&mut program, text.as_ptr(), c_name.as_ptr(), 0, null(), null()) };
        self.check("nvrtcCreateProgram", name, code, "")?;
        let job = Job {
            nvrtc: self,
            program,
            source: name,
        };
        // SAFETY: the program is live; the options are NUL-terminated strings that live for the call.
        let code = unsafe { (self.compile)(program, options.len() as c_int, options.as_ptr()) };
        if code != 0 {
            let log = job
                .output("nvrtcGetProgramLog", self.log_size, self.log)
                .unwrap_or_default();
            let log = String::from_utf8_lossy(&log);
            self.check("nvrtcCompileProgram", name, code, log.trim_end_matches('\0').trim_end())?;
        }
        Ok(job)
    }

    /// Machine code (a cubin) of `source` for an architecture.
    pub fn compile(&self, source: &Source, architecture: Architecture) -> Result<Vec<u8>, KernelError> {
        let job = self.run(source.name, &source.whole(), &format!("sm_{}", architecture.number()))?;
        job.output("nvrtcGetCUBIN", self.code_size, self.code)
    }

    /// PTX of `source` for an architecture, as text: to look at, or for devices newer than the compiler.
    pub fn compile_to_ptx(&self, source: &Source, architecture: Architecture) -> Result<String, KernelError> {
        let job = self.run(
            source.name,
            &source.whole(),
            &format!("compute_{}", architecture.number()),
        )?;
        let ptx = job.output("nvrtcGetPTX", self.ptx_size, self.ptx)?;
        Ok(String::from_utf8_lossy(&ptx).trim_end_matches('\0').to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_runs_the_newest_code_of_its_generation_that_is_not_newer_than_it() {
        let of = |major, minor| Architecture::of_capability(major, minor).map(Architecture::number);
        assert_eq!(of(7, 5), Ok(75));
        assert_eq!(of(8, 0), Ok(80));
        assert_eq!(of(8, 9), Ok(86));
        assert_eq!(of(9, 0), Ok(90));
        assert_eq!(of(10, 3), Ok(100));
        assert_eq!(of(12, 1), Ok(120));
        for (major, minor) in [(7, 0), (11, 0), (13, 0)] {
            assert_eq!(of(major, minor), Err(KernelError::Architecture { major, minor }));
        }
    }
}
