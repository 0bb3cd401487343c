//! The library's version, and which ones this binding takes.

use std::ffi::c_int;

use crate::error::Error;
use crate::raw;

/// A version of NCCL.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(c_int);

impl Version {
    /// The version with this code, as `ncclGetVersion` gives it.
    ///
    /// ```
    /// assert_eq!(nccl_rs::Version::from_code(22907).to_string(), "2.29.7");
    /// assert_eq!(nccl_rs::Version::from_code(2804).to_string(), "2.8.4");
    /// ```
    pub const fn from_code(code: c_int) -> Version {
        Version(code)
    }

    /// Its code: 22907 for 2.29.7. All ranks of a world need the same one.
    pub const fn code(self) -> c_int {
        self.0
    }

    /// Major, minor and patch. Up to 2.8 the code has a digit less for the minor (nccl.h, `NCCL_VERSION`).
    pub const fn parts(self) -> (c_int, c_int, c_int) {
        if self.0 < 10_000 {
            (self.0 / 1000, self.0 / 100 % 10, self.0 % 100)
        } else {
            (self.0 / 10_000, self.0 / 100 % 100, self.0 % 100)
        }
    }

    /// Refuses what this binding is not made for: anything older than 2.29.7, and another major version.
    ///
    /// ```
    /// use nccl_rs::Version;
    /// assert!(Version::from_code(22907).check().is_ok() && Version::from_code(23007).check().is_ok());
    /// let sentence = Version::from_code(22903).check().unwrap_err().to_string();
    /// assert_eq!(sentence, "NCCL 2.29.3 was loaded, and 2.29.7 or a newer 2.x is needed");
    /// assert!(Version::from_code(30000).check().is_err());
    /// ```
    ///
    /// # Errors
    /// [`Error::Version`].
    pub fn check(self) -> Result<(), Error> {
        if self.0 >= raw::VERSION_CODE && self.parts().0 == 2 {
            Ok(())
        } else {
            Err(Error::Version { found: self })
        }
    }
}

impl std::fmt::Display for Version {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (major, minor, patch) = self.parts();
        write!(formatter, "{major}.{minor}.{patch}")
    }
}
