//! What rank 0 measures in a step. It goes from the trainer's step report over the coordinator's decision into the
//! ledger, and from there, as a committed step, to files, pages and terminals.
//!
//! The ledger keeps these types as JSON. Fields that came later are left out where they are absent and default where
//! they are missing, so that rows of an older build stay readable.

use serde::{Deserialize, Serialize};

/// What rank 0 measured in a step. An optional field is absent where the optimiser has no such number.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StepMetrics {
    /// Mean over the counted tokens of the step, nats a token; of a skipped step it may be no number.
    #[serde(with = "any_number")]
    pub loss: f64,
    /// Counted tokens of the step, over all ranks.
    pub tokens: u64,
    /// Global gradient norm before clipping; of a skipped step it may be no number.
    #[serde(with = "any_number")]
    pub grad_norm: f64,
    /// Global norm of the update.
    pub update_norm: f64,
    /// As planned.
    pub learning_rate: f64,
    /// As applied.
    pub effective_learning_rate: f64,
    /// Wall time of the step, without validation.
    pub step_ms: f64,
    /// Milliseconds of the step's phases, in their order.
    pub phases: Vec<(String, f64)>,
    /// Polar factors that all owners computed together; 0 where there are none.
    pub polar_factors: u32,
    /// h, the value of Momo's model of the loss at the parameters of the step, nats a token (MoMo, arXiv 2305.07583;
    /// for a product norm arXiv 2510.09827).
    #[serde(default, skip_serializing_if = "Option::is_none", with = "any_number::option")]
    pub model_value: Option<f64>,
    /// G, the dual norm of the momentum under the method's norm (arXiv 2510.09827, section on product norms).
    #[serde(default, skip_serializing_if = "Option::is_none", with = "any_number::option")]
    pub dual_norm: Option<f64>,
    /// F*, the lower bound of the loss that the step was truncated with, nats a token (arXiv 2305.07583).
    #[serde(default, skip_serializing_if = "Option::is_none", with = "any_number::option")]
    pub lower_bound: Option<f64>,
    /// How orthogonal one polar factor of the step is; another one each step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub orthogonality: Option<Orthogonality>,
    /// tr σ² of one sample's gradient (the mean over a sequence's counted tokens), as this step's lanes estimate it; where more
    /// than one lane had tokens (arXiv 1812.06162, appendix A).
    #[serde(default, skip_serializing_if = "Option::is_none", with = "any_number::option")]
    pub gradient_variance: Option<f64>,
    /// ‖G‖² of the expected gradient, as this step's lanes estimate it without bias: it may be below zero.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "any_number::option")]
    pub gradient_square: Option<f64>,
    /// Why the step changed nothing, where a policy of `[fault]` says so: one sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub skipped: Option<String>,
}

/// How far the polar factor U of one hidden matrix is from orthogonal.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Orthogonality {
    /// Name of the hidden matrix, with `[part]` behind it for a part of a split tensor.
    pub tensor: String,
    /// ‖U·Uᵀ − I‖_F / √n, n the rows of U·Uᵀ; no unit, 0 for an exact factor.
    #[serde(with = "any_number")]
    pub error: f64,
}

/// JSON has no NaN and no infinities: a row that held `null` for them could not be read back. Their names stand for
/// them, as Rust prints and parses them.
mod any_number {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[derive(Serialize, Deserialize)]
    #[serde(untagged)]
    enum Written {
        Finite(f64),
        Named(String),
    }

    impl From<f64> for Written {
        fn from(number: f64) -> Written {
            if number.is_finite() {
                Written::Finite(number)
            } else {
                Written::Named(number.to_string())
            }
        }
    }

    impl Written {
        fn number<E: serde::de::Error>(self) -> Result<f64, E> {
            match self {
                Written::Finite(number) => Ok(number),
                Written::Named(name) => name
                    .parse()
                    .map_err(|_| E::custom(format_args!("{name:?} is no number; NaN, inf and -inf are"))),
            }
        }
    }

    pub(super) fn serialize<S: Serializer>(number: &f64, serializer: S) -> Result<S::Ok, S::Error> {
        Written::from(*number).serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
        Written::deserialize(deserializer)?.number()
    }

    pub(super) mod option {
        use super::*;

        pub(in super::super) fn serialize<S: Serializer>(
            number: &Option<f64>,
            serializer: S,
        ) -> Result<S::Ok, S::Error> {
            number.map(Written::from).serialize(serializer)
        }

        pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(
            deserializer: D,
        ) -> Result<Option<f64>, D::Error> {
            Option::<Written>::deserialize(deserializer)?
                .map(Written::number)
                .transpose()
        }
    }
}
