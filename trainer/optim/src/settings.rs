//! A config's optimiser as a run uses it.

use lockstep_config::{
    Descent, Method, MomoSection, OptimizerSection, OtherNorm, PolarMethod, PolarTable, Precision, Product, Scaling,
    Steepest,
};

use tch::Device;

use crate::polar::{self, Polar};
use crate::products::Products;

/// The optimiser of a run.
#[derive(Clone, Debug)]
pub struct Optimizer {
    /// As the present step has them.
    keys: OptimizerSection,
    /// As the config has them.
    configured: OptimizerSection,
    polar: Polar,
}

impl Optimizer {
    /// The optimiser that a config asks for, on this processor.
    pub fn new(keys: &OptimizerSection) -> Optimizer {
        Optimizer::for_device(keys, Device::Cpu)
    }

    /// The optimiser that a config asks for, on a device.
    pub fn for_device(keys: &OptimizerSection, device: Device) -> Optimizer {
        let method = match keys.polar.method {
            PolarMethod::PolarExpress => polar::Method::PolarExpress,
            PolarMethod::NewtonSchulz(PolarTable::Jordan) => polar::Method::NewtonSchulz(polar::Table::Jordan),
            PolarMethod::NewtonSchulz(PolarTable::You) => polar::Method::NewtonSchulz(polar::Table::You),
            PolarMethod::NewtonSchulz(PolarTable::Cans) => polar::Method::NewtonSchulz(polar::Table::Cans),
            PolarMethod::Gram { restart } => polar::Method::Gram { restart },
            PolarMethod::Svd => polar::Method::Svd,
        };
        Optimizer {
            polar: Polar {
                method,
                steps: keys.polar.steps,
                products: Products::for_device(keys.polar.precision == Precision::Bf16, device),
            },
            keys: keys.clone(),
            configured: keys.clone(),
        }
    }

    /// Takes a step's momentum and weight decay, or the config's where it has none of its own. In the family, other tensors
    /// average as hidden matrices do where the config lets them.
    pub fn follow(&mut self, momentum: Option<f64>, weight_decay: Option<f64>) {
        let configured = &self.configured;
        self.keys.momentum = momentum.unwrap_or(configured.momentum);
        self.keys.weight_decay = weight_decay.unwrap_or(configured.weight_decay);
        let alike = self.steepest().is_some() && configured.betas[0] == configured.momentum;
        self.keys.betas[0] = if alike { self.keys.momentum } else { configured.betas[0] };
    }

    /// The keys, as the present step has them.
    pub fn keys(&self) -> &OptimizerSection {
        &self.keys
    }

    /// How polar factors are made.
    pub fn polar(&self) -> &Polar {
        &self.polar
    }

    /// The member of the family, if it is one.
    pub fn steepest(&self) -> Option<Steepest> {
        match self.keys.method {
            Method::Steepest(steepest) => Some(steepest),
            _ => None,
        }
    }

    /// The model of the loss, if there is one.
    pub fn momo(&self) -> Option<MomoSection> {
        self.keys.momo
    }

    /// Whether no tensor may move before sums over all tensors are known: Momo, and norms whose steps depend on other
    /// tensors. Otherwise the step of each tensor follows from the learning rate alone.
    pub fn is_global(&self) -> bool {
        let local = match self.keys.method {
            Method::Steepest(Steepest {
                descent,
                product,
                other,
            }) => descent == Descent::Constrained && product == Product::Max && other != OtherNorm::Ada2,
            Method::Muon | Method::NorMuon | Method::AdamW | Method::Sgd => true,
            Method::Momo | Method::MomoAdam => false,
        };
        !local || self.keys.momo.is_some()
    }

    /// By how much the spectral norm of a hidden matrix `[rows, columns]` is divided: s times the shape factor.
    pub fn hidden_scale(&self, rows: usize, columns: usize) -> f64 {
        let (rows, columns) = (rows as f64, columns as f64);
        let shape = match self.keys.scaling {
            Scaling::None => 1.0,
            Scaling::Original => (rows / columns).max(1.0).sqrt(),
            Scaling::MatchRms => 0.2 * rows.max(columns).sqrt(),
            Scaling::Fan => (rows / columns).sqrt(),
        };
        self.keys.hidden_scale * shape
    }

    /// Whether moments start as the first gradient (and its square) instead of zero: the family and MoMo.
    pub fn starts_at_first_gradient(&self) -> bool {
        matches!(self.keys.method, Method::Steepest(_) | Method::Momo)
    }
}
