//! Settings of a communicator (`ncclConfig_t`); what is not set is the library's own choice.

use std::ffi::{CString, c_char, c_int};
use std::sync::Arc;

use crate::error::Error;
use crate::raw;

/// How many thread blocks NCCL takes for what it runs (`CTAPolicy`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockPolicy {
    /// The library's default: as fast as it can.
    Default,
    /// As few as do not cost speed.
    Efficiency,
    /// None where the copy engines can do the work.
    Zero,
}

/// Settings of one communicator. Each method sets one; see NCCL's "ncclConfig_t" for what they trade.
///
/// ```
/// let config = nccl_rs::Config::new().non_blocking().max_blocks(8).name("generation 7")?;
/// assert!(config.is_non_blocking());
/// # Ok::<(), nccl_rs::Error>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct Config {
    blocking: Option<bool>,
    cluster: Option<c_int>,
    least_blocks: Option<c_int>,
    most_blocks: Option<c_int>,
    split_share: Option<bool>,
    traffic_class: Option<c_int>,
    policy: Option<BlockPolicy>,
    texts: Texts,
}

/// Texts that a communicator and its children point to as long as they live: the library keeps the pointer of the name.
#[derive(Clone, Debug, Default)]
pub(crate) struct Texts {
    network: Option<Arc<CString>>,
    name: Option<Arc<CString>>,
}

impl Config {
    /// Nothing set.
    pub fn new() -> Config {
        Config::default()
    }

    /// Calls return at once, and `async_state` says when they are through (`blocking = 0`).
    pub fn non_blocking(mut self) -> Config {
        self.blocking = Some(false);
        self
    }

    /// Calls return when their work is on the stream (`blocking = 1`, the library's default).
    pub fn blocking(mut self) -> Config {
        self.blocking = Some(true);
        self
    }

    /// Whether [`Config::non_blocking`] was the last word.
    pub fn is_non_blocking(&self) -> bool {
        self.blocking == Some(false)
    }

    /// Thread blocks a cluster (`cgaClusterSize`, 0 to 8).
    pub fn cluster_size(mut self, blocks: u16) -> Config {
        self.cluster = Some(blocks.into());
        self
    }

    /// The least number of thread blocks (`minCTAs`).
    pub fn min_blocks(mut self, blocks: u16) -> Config {
        self.least_blocks = Some(blocks.into());
        self
    }

    /// The most thread blocks (`maxCTAs`): what is left over computes meanwhile.
    pub fn max_blocks(mut self, blocks: u16) -> Config {
        self.most_blocks = Some(blocks.into());
        self
    }

    /// Whether children of a split share resources with their parent (`splitShare`). An abort of one then stops the
    /// others too.
    pub fn split_share(mut self, share: bool) -> Config {
        self.split_share = Some(share);
        self
    }

    /// The traffic class of the network (`trafficClass`).
    pub fn traffic_class(mut self, class: u16) -> Config {
        self.traffic_class = Some(class.into());
        self
    }

    /// How many thread blocks it takes (`CTAPolicy`).
    pub fn block_policy(mut self, policy: BlockPolicy) -> Config {
        self.policy = Some(policy);
        self
    }

    /// The network module to use (`netName`), such as `Socket` or `IB`.
    ///
    /// # Errors
    /// [`Error::ConfigText`].
    pub fn network(mut self, name: &str) -> Result<Config, Error> {
        self.texts.network = Some(text("netName", name)?);
        Ok(self)
    }

    /// The communicator's name in NCCL's log (`commName`).
    ///
    /// # Errors
    /// [`Error::ConfigText`].
    pub fn name(mut self, name: &str) -> Result<Config, Error> {
        self.texts.name = Some(text("commName", name)?);
        Ok(self)
    }

    /// The C structure. It points into [`Config::texts`], which must outlive the communicator.
    pub(crate) fn to_raw(&self) -> raw::Config {
        let mut config = raw::Config::unset();
        let flag = |value: Option<bool>| value.map_or(raw::UNDEFINED, c_int::from);
        let set = |value: Option<c_int>| value.unwrap_or(raw::UNDEFINED);
        config.blocking = flag(self.blocking);
        config.cgaClusterSize = set(self.cluster);
        config.minCTAs = set(self.least_blocks);
        config.maxCTAs = set(self.most_blocks);
        config.splitShare = flag(self.split_share);
        config.trafficClass = set(self.traffic_class);
        config.CTAPolicy = set(self.policy.map(|policy| policy as c_int));
        config.netName = pointer(self.texts.network.as_ref());
        config.commName = pointer(self.texts.name.as_ref());
        config
    }

    pub(crate) fn texts(&self) -> Texts {
        self.texts.clone()
    }

    /// Refuses the variable that would make a non-blocking communicator block.
    pub(crate) fn check_environment(&self) -> Result<(), Error> {
        match std::env::var_os("NCCL_COMM_BLOCKING") {
            Some(value) if self.is_non_blocking() => Err(Error::BlockingFromEnvironment {
                value: value.to_string_lossy().into_owned(),
            }),
            _ => Ok(()),
        }
    }
}

fn text(setting: &'static str, text: &str) -> Result<Arc<CString>, Error> {
    CString::new(text).map(Arc::new).map_err(|_| Error::ConfigText {
        setting,
        text: text.to_owned(),
    })
}

fn pointer(text: Option<&Arc<CString>>) -> *const c_char {
    text.map_or(std::ptr::null(), |text| text.as_ptr())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_set_reaches_the_c_structure() {
        let unset = Config::new().to_raw();
        assert_eq!(unset.blocking, raw::UNDEFINED);
        assert!(unset.commName.is_null() && unset.netName.is_null());

        let config = Config::new()
            .non_blocking()
            .max_blocks(8)
            .split_share(false)
            .block_policy(BlockPolicy::Zero)
            .name("a")
            .unwrap();
        let raw = config.to_raw();
        assert_eq!((raw.blocking, raw.maxCTAs, raw.splitShare, raw.CTAPolicy), (0, 8, 0, 2));
        assert_eq!((raw.minCTAs, raw.numRmaCtx), (raw::UNDEFINED, raw::UNDEFINED));
        assert!(!raw.commName.is_null());
        assert_eq!(Config::new().blocking().to_raw().blocking, 1);
    }

    #[test]
    fn what_c_cannot_carry_is_refused_by_name() {
        let sentence = Config::new().name("a\0b").unwrap_err().to_string();
        assert!(sentence.contains("commName"), "{sentence}");
    }
}
