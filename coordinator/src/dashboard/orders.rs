//! What operators set from the page: the words in its form become an order, the same that `lockstep set` gives.
//!
//! Way of data: [`Form`], from the page's JSON → [`Form::order`] → the machine, which answers with the step from which the change
//! holds; first as a dry run, whose answer the page shows before it asks for the change itself.

use serde::Deserialize;

use crate::changes::{Ask, Setting};
use crate::run::{Order, Wanted};
use crate::service::LONGEST_KEY;

/// The form's fields. One that is absent or empty stays as it is.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Form {
    learning_rate: String,
    batch: String,
    momentum: String,
    weight_decay: String,
    /// The name of this order: the page sends it again where the answer was lost.
    key: String,
    dry_run: bool,
}

impl Form {
    /// The order that the form means.
    ///
    /// # Errors
    /// One sentence that names the field.
    pub(super) fn order(self) -> Result<Order, String> {
        if self.key.chars().count() > LONGEST_KEY {
            return Err(format!("the key of an order has at most {LONGEST_KEY} characters"));
        }
        let ask = Ask {
            learning_rate: setting("learning rate", &self.learning_rate)?,
            batch: setting("batch", &self.batch)?,
            momentum: setting("momentum", &self.momentum)?,
            weight_decay: setting("weight decay", &self.weight_decay)?,
            ..Ask::default()
        };
        Ok(Order {
            wanted: Wanted::Change(ask),
            key: self.key,
            if_step_before: None,
            dry_run: self.dry_run,
        })
    }
}

/// A value, `x` and a factor, or `schedule`, as on the command line.
fn setting(what: &str, words: &str) -> Result<Option<Setting>, String> {
    let words = words.trim();
    let number = |text: &str| text.trim().parse::<f64>().ok().filter(|number| number.is_finite());
    let setting = match (words, words.strip_prefix(['x', '×'])) {
        ("", _) => return Ok(None),
        ("schedule", _) => Some(Setting::Schedule),
        (_, Some(factor)) => number(factor).map(Setting::Factor),
        (value, None) => number(value).map(Setting::Value),
    };
    setting.map(Some).ok_or_else(|| {
        format!("{what}: {words:?} is no number; write 3e-4, x0.5 for half of what the schedule says, or schedule")
    })
}
