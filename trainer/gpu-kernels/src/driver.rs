//! CUDA's driver: facts of devices, modules of machine code, launches on a stream.
//!
//! It works in the context that libtorch has made current on the calling thread; it makes none.

use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};
use std::path::Path;
use std::ptr::null_mut;
use std::sync::Arc;

use crate::library::OpenLibrary;
use crate::sources::THREADS;
use crate::{Function, KernelError};

/// Comes with the machine's NVIDIA driver, never with libtorch.
const SONAME: &str = "libcuda.so.1";
const ADVICE: &str = "it comes with the machine's NVIDIA driver: install it, or give the container access to the GPU";

type Code = c_int;
type Handle = *mut c_void;

/// What a device is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceFacts {
    /// Its name.
    pub name: String,
    /// Its compute capability: generation and version.
    pub capability: (u32, u32),
    /// Its multiprocessors. Products may choose other kernels, with other bits, for another number.
    pub multiprocessors: u32,
}

/// The driver's functions.
pub struct Driver {
    version: i32,
    error_string: unsafe extern "C" fn(Code, *mut *const c_char) -> Code,
    device: unsafe extern "C" fn(*mut c_int, c_int) -> Code,
    device_name: unsafe extern "C" fn(*mut c_char, c_int, c_int) -> Code,
    device_attribute: unsafe extern "C" fn(*mut c_int, c_int, c_int) -> Code,
    load: unsafe extern "C" fn(*mut Handle, *const c_void) -> Code,
    unload: unsafe extern "C" fn(Handle) -> Code,
    function: unsafe extern "C" fn(*mut Handle, Handle, *const c_char) -> Code,
    launch: unsafe extern "C" fn(
        Handle,
        c_uint,
        c_uint,
        c_uint,
        c_uint,
        c_uint,
        c_uint,
        c_uint,
        Handle,
        *mut *mut c_void,
        *mut *mut c_void,
    ) -> Code,
}

impl Driver {
    /// The machine's driver.
    pub fn load() -> Result<Arc<Driver>, KernelError> {
        Driver::from_library(OpenLibrary::open(SONAME, ADVICE)?)
    }

    /// A driver at a path: a test's.
    pub fn load_from(path: &Path) -> Result<Arc<Driver>, KernelError> {
        Driver::from_library(OpenLibrary::open(path, ADVICE)?)
    }

    fn from_library(library: OpenLibrary) -> Result<Arc<Driver>, KernelError> {
        type Initialise = unsafe extern "C" fn(c_uint) -> Code;
        type Version = unsafe extern "C" fn(*mut c_int) -> Code;
        // SAFETY: the types are those of cuda.h, here and below.
        let initialise: Initialise = unsafe { library.function("cuInit")? };
        // SAFETY: as above.
        let version: Version = unsafe { library.function("cuDriverGetVersion")? };
        // SAFETY: as above.
        let mut driver = unsafe {
            Driver {
                version: 0,
                error_string: library.function("cuGetErrorString")?,
                device: library.function("cuDeviceGet")?,
                device_name: library.function("cuDeviceGetName")?,
                device_attribute: library.function("cuDeviceGetAttribute")?,
                load: library.function("cuModuleLoadData")?,
                unload: library.function("cuModuleUnload")?,
                function: library.function("cuModuleGetFunction")?,
                launch: library.function("cuLaunchKernel")?,
            }
        };
        library.keep();
        // SAFETY: takes a number that must be 0.
        driver.check("cuInit", unsafe { initialise(0) })?;
        let mut number = 0;
        // SAFETY: the out pointer is valid.
        driver.check("cuDriverGetVersion", unsafe { version(&mut number) })?;
        driver.version = number;
        Ok(Arc::new(driver))
    }

    /// The newest CUDA that it knows: 13000 is 13.0.
    pub fn version(&self) -> i32 {
        self.version
    }

    fn check(&self, call: &str, code: Code) -> Result<(), KernelError> {
        if code == 0 {
            return Ok(());
        }
        let mut text = std::ptr::null();
        // SAFETY: the out pointer is valid; the text has static lifetime, and stays null for unknown codes.
        let text = unsafe {
            (self.error_string)(code, &mut text);
            if text.is_null() {
                c"an unknown error"
            } else {
                CStr::from_ptr(text)
            }
        };
        Err(KernelError::Driver {
            call: call.to_owned(),
            code,
            text: text.to_string_lossy().into_owned(),
        })
    }

    /// What device `index` (among those visible) is.
    pub fn facts(&self, index: usize) -> Result<DeviceFacts, KernelError> {
        const MULTIPROCESSORS: c_int = 16;
        const CAPABILITY_MAJOR: c_int = 75;
        const CAPABILITY_MINOR: c_int = 76;
        let ordinal = c_int::try_from(index).map_err(|_| KernelError::Launch(format!("there is no device {index}")))?;
        let mut device = 0;
        // SAFETY: the out pointer is valid.
        self.check("cuDeviceGet", unsafe { (self.device)(&mut device, ordinal) })?;
        let mut name = [0u8; 256];
        // SAFETY: the driver writes at most the length that it is told, with a NUL.
        self.check("cuDeviceGetName", unsafe {
            (self.device_name)(name.as_mut_ptr().cast(), name.len() as c_int, device)
        })?;
        let attribute = |which| {
            let mut value = 0;
            // SAFETY: the out pointer is valid.
            self.check("cuDeviceGetAttribute", unsafe {
                (self.device_attribute)(&mut value, which, device)
            })?;
            Ok(u32::try_from(value).unwrap_or(0))
        };
        Ok(DeviceFacts {
            name: CStr::from_bytes_until_nul(&name)
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned(),
            capability: (attribute(CAPABILITY_MAJOR)?, attribute(CAPABILITY_MINOR)?),
            multiprocessors: attribute(MULTIPROCESSORS)?,
        })
    }

    /// Loads machine code or PTX into the current context.
    pub fn module(self: &Arc<Self>, image: &[u8]) -> Result<Arc<Module>, KernelError> {
        // PTX must end with a NUL; machine code says itself how long it is.
        let mut image = image.to_vec();
        image.push(0);
        let mut handle = null_mut();
        // SAFETY: the image lives for the call, which copies it.
        self.check("cuModuleLoadData", unsafe {
            (self.load)(&mut handle, image.as_ptr().cast())
        })?;
        Ok(Arc::new(Module {
            driver: Arc::clone(self),
            handle,
        }))
    }
}

/// Loaded code; unloaded with the last of its kernels.
pub struct Module {
    driver: Arc<Driver>,
    handle: Handle,
}

// SAFETY: the driver's functions are thread-safe; handles have no thread affinity.
unsafe impl Send for Module {}
// SAFETY: as above.
unsafe impl Sync for Module {}

impl Drop for Module {
    fn drop(&mut self) {
        // SAFETY: loaded by `Driver::module`, unloaded once. An error (a context that is gone) changes nothing here.
        unsafe { (self.driver.unload)(self.handle) };
    }
}

impl Module {
    /// One of its kernels.
    pub fn kernel(self: &Arc<Self>, function: Function) -> Result<Kernel, KernelError> {
        let name = CString::new(function.name)
            .map_err(|_| KernelError::Launch("a kernel's name holds a NUL byte".to_owned()))?;
        let mut handle = null_mut();
        // SAFETY: the module is loaded; the name is NUL-terminated.
        let code = unsafe { (self.driver.function)(&mut handle, self.handle, name.as_ptr()) };
        self.driver
            .check(&format!("cuModuleGetFunction of {}", function.name), code)?;
        Ok(Kernel {
            module: Arc::clone(self),
            handle,
            function,
        })
    }
}

/// A kernel that can be launched.
pub struct Kernel {
    module: Arc<Module>,
    handle: Handle,
    function: Function,
}

// SAFETY: as of `Module`.
unsafe impl Send for Kernel {}
// SAFETY: as of `Module`.
unsafe impl Sync for Kernel {}

impl Kernel {
    /// Gives `blocks` blocks of the kernel to `stream` (libtorch's native handle); the host goes on at once. No blocks is
    /// no work.
    ///
    /// # Safety
    /// The arguments must be what the kernel takes: addresses of memory of the current context, long enough, that live
    /// until the stream has done the work, and counts.
    pub unsafe fn launch(&self, blocks: usize, stream: *mut c_void, arguments: &[u64]) -> Result<(), KernelError> {
        let name = self.function.name;
        if arguments.len() != self.function.arguments {
            return Err(KernelError::Launch(format!(
                "the kernel {name} takes {} arguments, not {}",
                self.function.arguments,
                arguments.len()
            )));
        }
        if blocks == 0 {
            return Ok(());
        }
        let blocks = c_uint::try_from(blocks)
            .ok()
            .filter(|blocks| *blocks <= i32::MAX as c_uint)
            .ok_or_else(|| KernelError::Launch(format!("{blocks} blocks of {name} are more than a launch can have")))?;
        // The driver reads arguments through pointers, and writes none.
        let mut places: Vec<*mut c_void> = arguments
            .iter()
            .map(|argument| std::ptr::from_ref(argument).cast_mut().cast())
            .collect();
        let driver = &self.module.driver;
        // SAFETY: the module is loaded; the arguments are copied by the call; the rest is the caller's promise.
        let code = unsafe {
            (driver.launch)(
                self.handle,
                blocks,
                1,
                1,
                THREADS,
                1,
                1,
                0,
                stream,
                places.as_mut_ptr(),
                null_mut(),
            )
        };
        driver.check(&format!("cuLaunchKernel of {name}"), code)
    }
}
