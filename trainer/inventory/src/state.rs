//! What of each tensor outlives a step, as named float32 arrays: the same on every rank and every world, so that a checkpoint
//! can be described by whoever knows the config.

use lockstep_config::{Method, OtherNorm, Steepest};

use crate::tensors::TensorSpec;
use crate::treatment::{Treatment, Use};

/// The float32 master.
pub const MASTER: &str = "master";
/// The first moment, or the momentum.
pub const MOMENTUM: &str = "momentum";
/// The second moment of other tensors.
pub const SECOND: &str = "second";
/// NorMuon's running mean square of each row of the factors.
pub const ROW_SQUARES: &str = "row_squares";

/// Whether the method has a second moment for other tensors.
pub fn has_second_moment(method: Method) -> bool {
    match method {
        Method::Steepest(Steepest { other, .. }) => other != OtherNorm::Sign,
        Method::Muon | Method::NorMuon | Method::AdamW | Method::MomoAdam => true,
        Method::Sgd | Method::Momo => false,
    }
}

/// The arrays of a tensor: name and shape, in the order in which owners show them.
pub fn arrays(spec: &TensorSpec, treatment: &Treatment, method: Method) -> Vec<(&'static str, Vec<usize>)> {
    let shape: Vec<usize> = spec.shape.iter().map(|side| *side as usize).collect();
    let mut arrays = vec![(MASTER, shape.clone()), (MOMENTUM, shape.clone())];
    match treatment.kind {
        Use::Hidden { parts, rows, .. } if method == Method::NorMuon => arrays.push((ROW_SQUARES, vec![parts * rows])),
        Use::Hidden { .. } => {}
        Use::Other if has_second_moment(method) => arrays.push((SECOND, shape)),
        Use::Other => {}
    }
    arrays
}
