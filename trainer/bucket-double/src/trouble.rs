//! What goes wrong between a store and its clients: how likely each trouble is for a request, and how often it came.

use std::str::FromStr;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

/// How likely each trouble is for a request. At most one of them comes to it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Trouble {
    /// Refused with 500 or 503, nothing done.
    pub refused: f64,
    /// Done, and the answer is a 500.
    pub lost: f64,
    /// The connection is cut without an answer; every second time the request is done before.
    pub cut: f64,
    /// Answered after [`Trouble::delay`].
    pub slow: f64,
    /// How late a slow answer is.
    pub delay: Duration,
}

/// Orders as in `refused=0.3 slow=0.5 delay=1.5`: what is not named is 0. `delay` is in seconds.
impl FromStr for Trouble {
    type Err = String;

    fn from_str(orders: &str) -> Result<Trouble, String> {
        let mut trouble = Trouble::default();
        for order in orders.split_whitespace() {
            let refused = || {
                format!(
                    "the trouble {order:?} is not known; known are refused, lost, cut and slow with =SHARE of 0 to 1, and delay with =SECONDS"
                )
            };
            let (name, value) = order.split_once('=').ok_or_else(refused)?;
            let value: f64 = value.parse().map_err(|_| refused())?;
            let share = match name {
                "refused" => &mut trouble.refused,
                "lost" => &mut trouble.lost,
                "cut" => &mut trouble.cut,
                "slow" => &mut trouble.slow,
                "delay" => {
                    trouble.delay = Duration::try_from_secs_f64(value).map_err(|_| refused())?;
                    continue;
                }
                _ => return Err(refused()),
            };
            if !(0.0..=1.0).contains(&value) {
                return Err(refused());
            }
            *share = value;
        }
        Ok(trouble)
    }
}

/// What comes to one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    Refused,
    Lost,
    Cut,
    Slow,
    Answered,
}

impl Trouble {
    /// What comes to the request that has drawn `dice` of 0 to 1.
    pub(crate) fn fate(&self, dice: f64) -> Fate {
        let mut end = 0.0;
        let shares = [
            (self.refused, Fate::Refused),
            (self.lost, Fate::Lost),
            (self.cut, Fate::Cut),
            (self.slow, Fate::Slow),
        ];
        for (share, fate) in shares {
            end += share;
            if dice < end {
                return fate;
            }
        }
        Fate::Answered
    }
}

/// What the server did to its clients.
#[derive(Debug, Default)]
pub struct Troubles {
    /// All requests.
    pub requests: AtomicU64,
    /// Those that were refused.
    pub refused: AtomicU64,
    /// Those whose answer was lost.
    pub lost: AtomicU64,
    /// Those whose connection was cut.
    pub cut: AtomicU64,
    /// Those that were answered late.
    pub slow: AtomicU64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_are_read_and_what_is_none_is_refused_by_its_words() {
        let read: Trouble = " refused=0.25 cut=1 delay=1.5 ".parse().unwrap();
        let expected = Trouble {
            refused: 0.25,
            cut: 1.0,
            delay: Duration::from_millis(1500),
            ..Trouble::default()
        };
        assert_eq!(read, expected);
        assert_eq!("".parse(), Ok(Trouble::default()));
        for order in [
            "refused",
            "slow=much",
            "fire=1",
            "lost=1.5",
            "cut=-1",
            "slow=NaN",
            "delay=-1",
        ] {
            let sentence = order.parse::<Trouble>().unwrap_err();
            assert!(sentence.contains(&format!("{order:?}")), "{sentence}");
        }
    }

    #[test]
    fn each_trouble_has_its_share_of_the_dice() {
        let trouble: Trouble = "refused=0.1 lost=0.2 cut=0.3 slow=0.2".parse().unwrap();
        let fates = [0.0, 0.09, 0.11, 0.29, 0.31, 0.59, 0.61, 0.79, 0.81, 0.99].map(|dice| trouble.fate(dice));
        use Fate::{Answered, Cut, Lost, Refused, Slow};
        assert_eq!(
            fates,
            [Refused, Refused, Lost, Lost, Cut, Cut, Slow, Slow, Answered, Answered]
        );
        assert_eq!("cut=1".parse::<Trouble>().unwrap().fate(0.999), Cut);
    }
}
