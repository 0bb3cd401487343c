//! The opened library: how it is found, its version, and what needs no communicator.

use std::error::Error as _;
use std::ffi::{CStr, OsStr, c_char, c_int};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};

use crate::api::Api;
use crate::error::{Code, Error};
use crate::raw::{self, ResultCode};
use crate::version::Version;
use crate::{State, UniqueId};

const SONAME: &str = "libnccl.so.2";

/// `RTLD_NOLOAD` of glibc: only what is in the process already.
const RTLD_NOLOAD: c_int = 4;

/// The functions of every library that was opened. They stay for the rest of the process, so a library that is opened again
/// (for every generation of ranks, say) has those that it had.
static OPENED: Mutex<Vec<&'static Api>> = Mutex::new(Vec::new());

fn keep(api: Api) -> &'static Api {
    let mut opened = OPENED.lock().unwrap_or_else(PoisonError::into_inner);
    let known = opened.iter().copied().find(|known| is_same(known, &api));
    known.unwrap_or_else(|| {
        let api: &'static Api = Box::leak(Box::new(api));
        opened.push(api);
        api
    })
}

/// The loader gives a library that is opened twice the same addresses.
fn is_same(one: &Api, other: &Api) -> bool {
    std::ptr::fn_addr_eq(one.abort, other.abort)
}

/// NCCL, opened. A copy is a pointer; the library is never closed, as its threads and exit handlers need.
#[derive(Clone, Copy)]
pub struct Nccl {
    pub(crate) api: &'static Api,
    version: Version,
}

impl std::fmt::Debug for Nccl {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Nccl {}", self.version)
    }
}

impl Nccl {
    /// The library that is in the process already (libtorch's, once `libtorch_cuda.so` is open), else the one that the
    /// loader finds as `libnccl.so.2`.
    ///
    /// ```no_run
    /// let nccl = nccl_rs::Nccl::load()?;
    /// println!("NCCL {}", nccl.version());
    /// # Ok::<(), nccl_rs::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::NoLibrary`], [`Error::NoSymbol`], [`Error::Version`].
    pub fn load() -> Result<Nccl, Error> {
        open(SONAME.as_ref(), RTLD_NOW | RTLD_NOLOAD)
            .or_else(|_| open(SONAME.as_ref(), RTLD_NOW | RTLD_LOCAL))
            .and_then(|library| Nccl::of(library, SONAME.into()))
    }

    /// The library in the file `path`, for tests and for programs that check a library. Never beside another NCCL that
    /// this process really uses. The file is trusted to be NCCL (or a double of it), as a program is that one starts.
    ///
    /// ```
    /// use nccl_rs::{Error, Nccl};
    /// let refusal = Nccl::open("no/such/libnccl.so.2").unwrap_err();
    /// assert!(matches!(refusal, Error::NoLibrary { .. }), "{refusal}");
    /// ```
    ///
    /// # Errors
    /// [`Error::NoLibrary`], [`Error::NoSymbol`], [`Error::Version`].
    pub fn open(path: impl AsRef<Path>) -> Result<Nccl, Error> {
        let path = path.as_ref();
        let library = open(path.as_os_str(), RTLD_NOW | RTLD_LOCAL)?;
        Nccl::of(library, path.to_path_buf())
    }

    /// Asks for the version first: an old library is told by that, not by the first function that it lacks.
    fn of(library: Library, path: PathBuf) -> Result<Nccl, Error> {
        // SAFETY: the type is the one that nccl.h declares for this name.
        let get_version = unsafe { library.get::<unsafe extern "C" fn(*mut c_int) -> ResultCode>(b"ncclGetVersion\0") };
        let get_version = get_version.map_err(|error| Error::NoSymbol {
            path: path.clone(),
            symbol: "ncclGetVersion",
            reason: whole_reason(&error),
        })?;
        let mut code = 0;
        // SAFETY: it writes one int.
        let answer = unsafe { get_version(&raw mut code) };
        let version = Version::from_code(if answer == raw::SUCCESS { code } else { 0 });
        version.check()?;
        let api = keep(Api::resolve(&library, &path)?);
        std::mem::forget(library);
        Ok(Nccl { api, version })
    }

    /// The library's version. All ranks need the same one, else NCCL refuses the meeting.
    ///
    /// ```no_run
    /// # let nccl = nccl_rs::Nccl::load()?;
    /// assert!(nccl.version().code() >= 22907);
    /// # Ok::<(), nccl_rs::Error>(())
    /// ```
    pub fn version(&self) -> Version {
        self.version
    }

    /// A new id for one communicator (`ncclGetUniqueId`). It names a listener in this process, which has to live until
    /// all ranks have met; one id serves one attempt.
    ///
    /// ```no_run
    /// # let nccl = nccl_rs::Nccl::load()?;
    /// let id = nccl.unique_id()?;
    /// let travels = id.to_bytes();
    /// # Ok::<(), nccl_rs::Error>(())
    /// ```
    ///
    /// # Errors
    /// No network interface: [`Code::InvalidUsage`].
    pub fn unique_id(&self) -> Result<UniqueId, Error> {
        let mut id = raw::UniqueId {
            internal: [0; raw::UNIQUE_ID_BYTES],
        };
        // SAFETY: it writes one id.
        let code = unsafe { (self.api.get_unique_id)(&raw mut id) };
        self.checked("ncclGetUniqueId", code)?;
        Ok(UniqueId::from_raw(id))
    }

    /// The library's words for a code (`ncclGetErrorString`).
    ///
    /// ```no_run
    /// # let nccl = nccl_rs::Nccl::load()?;
    /// println!("{}", nccl.error_string(nccl_rs::Code::InvalidUsage));
    /// # Ok::<(), nccl_rs::Error>(())
    /// ```
    pub fn error_string(&self, code: Code) -> String {
        // SAFETY: it takes any number and gives a static text.
        text_of(unsafe { (self.api.error_string)(code.number()) })
    }

    /// The last warning of this process (`ncclGetLastError`); empty where there was none. It is never cleared, so it
    /// means something only right after a failure, and [`Error::Nccl`] carries it then.
    ///
    /// ```no_run
    /// # let nccl = nccl_rs::Nccl::load()?;
    /// println!("{}", nccl.last_error());
    /// # Ok::<(), nccl_rs::Error>(())
    /// ```
    pub fn last_error(&self) -> String {
        // SAFETY: the header allows a null communicator; the text is a buffer of the library that outlives it.
        text_of(unsafe { (self.api.last_error)(std::ptr::null_mut()) })
    }

    /// Turns an answer into a state, or into an error with the library's own words.
    pub(crate) fn checked(&self, call: &'static str, answer: ResultCode) -> Result<State, Error> {
        match Code::of(answer) {
            None if answer == raw::IN_PROGRESS => Ok(State::InProgress),
            None => Ok(State::Ready),
            Some(code) => Err(Error::Nccl {
                code,
                call,
                text: self.error_string(code),
                detail: self.last_error(),
            }),
        }
    }

    /// Whether `other` is the same library.
    pub(crate) fn is_same(&self, other: &Nccl) -> bool {
        is_same(self.api, other.api)
    }
}

fn open(name: &OsStr, flags: c_int) -> Result<Library, Error> {
    // SAFETY: NCCL's initialisers only fill tables; that the file is NCCL is what the callers' documents ask for.
    unsafe { Library::open(Some(name), flags) }.map_err(|error| Error::NoLibrary {
        path: name.into(),
        reason: whole_reason(&error),
    })
}

/// What the loader said. The error's own text names only the call; the reason stands behind it.
pub(crate) fn whole_reason(error: &libloading::Error) -> String {
    match error.source() {
        Some(source) => source.to_string(),
        None => error.to_string(),
    }
}

fn text_of(text: *const c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: not null, and the library's texts end with a zero byte.
    let text = unsafe { CStr::from_ptr(text) };
    text.to_string_lossy().trim().to_owned()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_library_that_is_opened_again_costs_nothing() {
        let path = nccl_double::Double::path().unwrap();
        let [first, again] = [(); 2].map(|()| Nccl::open(&path).unwrap());
        assert!(std::ptr::eq(first.api, again.api));
    }
}
