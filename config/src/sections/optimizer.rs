//! The types of `[optimizer]`.

use super::Precision;

/// `[optimizer]`.
#[derive(Debug, Clone, PartialEq)]
pub struct OptimizerSection {
    /// What makes the update.
    pub method: Method,
    /// Momentum of hidden matrices (and of `sgd` and `momo`), in [0, 1).
    pub momentum: f64,
    /// Whether the update looks ahead along the momentum (`muon`, `normuon`, `sgd`).
    pub nesterov: bool,
    /// Whether `sgd`'s momentum is an average, m ← β·m + (1−β)·g, instead of a sum, m ← β·m + g.
    pub normalized: bool,
    /// Decay rates of the first and second moment of other tensors, each in [0, 1). `normuon`: the second one is that of
    /// the rows too.
    pub betas: [f64; 2],
    /// Added to the root of the second moment, positive.
    pub epsilon: f64,
    /// Decoupled weight decay, at least 0.
    pub weight_decay: f64,
    /// Whether weight decay only acts on elements that the update makes smaller.
    pub cautious: bool,
    /// s: the spectral norm of hidden matrices is divided by it.
    pub hidden_scale: f64,
    /// How the step of a hidden matrix depends on its shape.
    pub scaling: Scaling,
    /// Gradients are scaled down to this global norm; none: never.
    pub clip_norm: Option<f64>,
    /// How the polar factor is computed.
    pub polar: PolarSection,
    /// Steps truncated by a model of the loss; always there for `momo` and `momo-adam`.
    pub momo: Option<MomoSection>,
    /// Which tensors are hidden matrices, by the first rule that matches; none: as the model says.
    pub hidden: Option<Vec<HiddenRule>>,
    /// Tensors with a learning-rate scale and weight decay of their own, by the first one that matches.
    pub groups: Vec<GroupRule>,
}

impl OptimizerSection {
    /// Whether the momentum may be another one in another step.
    ///
    /// # Errors
    /// Why not, as a part of a sentence.
    pub fn may_change_momentum(&self) -> Result<(), &'static str> {
        match (self.method, &self.momo) {
            (Method::AdamW | Method::MomoAdam, _) => {
                Err("this method averages by optimizer.betas, which stay as they are")
            }
            (_, Some(_)) => Err("Momo's model of the loss is an average of all gradients by one momentum"),
            _ => Ok(()),
        }
    }
}

/// An optimiser.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// Steepest descent under a product norm: spectral norms of the hidden matrices, other norms of the rest.
    Steepest(Steepest),
    /// Muon on hidden matrices, AdamW on the rest.
    Muon,
    /// Muon with normalised rows on hidden matrices, AdamW on the rest.
    NorMuon,
    /// AdamW on everything.
    AdamW,
    /// Stochastic gradient descent with momentum on everything.
    Sgd,
    /// Model-based momentum on everything: SGD's directions, the step from a model of the loss.
    Momo,
    /// The same with Adam's directions.
    MomoAdam,
}

/// A member of the Muon / MuonMax family: three choices that combine freely.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Steepest {
    /// Whether the step's length is the learning rate, or that times the dual norm of the momentum.
    pub descent: Descent,
    /// How the norms of the tensors make one norm.
    pub product: Product,
    /// The norm of other tensors.
    pub other: OtherNorm,
}

impl Steepest {
    /// Constrained, max, ada-inf.
    pub const MUONADAM: Steepest = Steepest::new(Descent::Constrained, Product::Max, OtherNorm::AdaInf);
    /// Regularised, hybrid, ada-2.
    pub const MUONMAX: Steepest = Steepest::new(Descent::Regularized, Product::Hybrid, OtherNorm::Ada2);
    /// Constrained, max, sign.
    pub const SCION: Steepest = Steepest::new(Descent::Constrained, Product::Max, OtherNorm::Sign);
    /// Regularised, l2, ada-2.
    pub const POLARGRAD: Steepest = Steepest::new(Descent::Regularized, Product::L2, OtherNorm::Ada2);

    /// The member with these choices.
    pub const fn new(descent: Descent, product: Product, other: OtherNorm) -> Steepest {
        Steepest {
            descent,
            product,
            other,
        }
    }

    /// All 18 members.
    pub fn all() -> impl Iterator<Item = Steepest> {
        Descent::WORDS.iter().flat_map(|(_, descent)| {
            Product::WORDS.iter().flat_map(move |(_, product)| {
                OtherNorm::WORDS
                    .iter()
                    .map(move |(_, other)| Steepest::new(*descent, *product, *other))
            })
        })
    }
}

/// How a steepest-descent step is bounded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Descent {
    /// Its norm is the learning rate.
    Constrained,
    /// Its squared norm is paid for: the norm is the learning rate times the dual norm of the momentum.
    Regularized,
}

/// How the norms of the tensors make one norm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Product {
    /// The largest of all.
    Max,
    /// The root of the sum of squares.
    L2,
    /// The largest of the hidden matrices' and the root of the sum of squares of the others', joined as two numbers by
    /// the root of the sum of squares.
    Hybrid,
}

/// The norm of other tensors. D = √v + ε with Adam's second moment v.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OtherNorm {
    /// The largest element: steps are signs.
    Sign,
    /// max |x|·D/|m|: constrained steps are Adam's.
    AdaInf,
    /// √Σ D·x²: regularised steps are Adam's.
    Ada2,
}

/// How the step of a hidden matrix depends on its shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scaling {
    /// Not at all.
    None,
    /// √max(1, rows/columns), Keller Jordan's.
    Original,
    /// 0.2·√max(rows, columns), Moonlight's, which matches AdamW's root mean square.
    MatchRms,
    /// √(rows/columns): fan out over fan in.
    Fan,
}

/// `optimizer.polar`.
#[derive(Debug, Clone, PartialEq)]
pub struct PolarSection {
    /// The iteration.
    pub method: PolarMethod,
    /// Its steps; of no effect for [`PolarMethod::Svd`].
    pub steps: u32,
    /// Precision of its products; default: `run.precision`.
    pub precision: Precision,
}

/// A way to the polar factor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PolarMethod {
    /// Polar Express: minimax odd quintics, one per step.
    PolarExpress,
    /// Newton–Schulz with a fixed table of coefficients.
    NewtonSchulz(PolarTable),
    /// Polar Express on the Gram matrix, which is computed anew after each `restart` steps.
    Gram {
        /// Steps between restarts.
        restart: u32,
    },
    /// The singular value decomposition, in float64.
    Svd,
}

/// Coefficients of Newton–Schulz.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PolarTable {
    /// Keller Jordan's one quintic.
    Jordan,
    /// You Jiacheng's five quintics.
    You,
    /// CANS: twelve cubics.
    Cans,
}

/// `optimizer.momo`: model-based momentum. The step is truncated where the averaged linear model of the loss would pass
/// below a lower bound.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MomoSection {
    /// The lower bound of the loss.
    pub lower_bound: LowerBound,
    /// Where the model is evaluated under weight decay.
    pub decay: MomoDecay,
}

/// A lower bound of the loss.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum LowerBound {
    /// This number, in nats a token.
    Fixed(f64),
    /// Estimated while training.
    Auto,
}

/// Where Momo's model is evaluated under weight decay λ with learning rate η.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MomoDecay {
    /// At w, as published.
    Paper,
    /// At (1 − ηλ)·w, where the step starts.
    Exact,
}

/// A rule of `optimizer.hidden`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HiddenRule {
    /// A pattern of tensor names: `*`, `?`, `[…]`. Beginning with `!` in the config: what it matches is not hidden.
    pub pattern: String,
    /// What becomes of a tensor that it matches.
    pub hidden: Option<Split>,
}

/// How a hidden tensor is taken apart into matrices, by rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Split {
    /// Into this many parts of equal rows; 1: not at all.
    Parts(u32),
    /// Into parts of one attention head's width.
    Heads,
}

/// A group of `optimizer.groups`.
#[derive(Debug, Clone, PartialEq)]
pub struct GroupRule {
    /// A pattern of tensor names: `*`, `?`, `[…]`.
    pub pattern: String,
    /// The learning rate of its tensors is multiplied by this.
    pub lr_scale: f64,
    /// Their weight decay; none: `optimizer.weight_decay`, where that acts on the tensor.
    pub weight_decay: Option<f64>,
}

words!(Descent { Constrained = "constrained", Regularized = "regularized" });
words!(Product { Max = "max", L2 = "l2", Hybrid = "hybrid" });
words!(OtherNorm { Sign = "sign", AdaInf = "ada-inf", Ada2 = "ada-2" });
words!(Scaling { None = "none", Original = "original", MatchRms = "match-rms", Fan = "fan" });
words!(PolarTable { Jordan = "jordan", You = "you", Cans = "cans" });
words!(MomoDecay { Paper = "paper", Exact = "exact" });

impl Method {
    /// The named methods.
    pub(crate) const WORDS: &'static [(&'static str, Method)] = &[
        ("muonadam", Method::Steepest(Steepest::MUONADAM)),
        ("muonmax", Method::Steepest(Steepest::MUONMAX)),
        ("scion", Method::Steepest(Steepest::SCION)),
        ("polargrad", Method::Steepest(Steepest::POLARGRAD)),
        ("muon", Method::Muon),
        ("normuon", Method::NorMuon),
        ("adamw", Method::AdamW),
        ("sgd", Method::Sgd),
        ("momo", Method::Momo),
        ("momo-adam", Method::MomoAdam),
    ];

    /// The name in TOML; none for a member of the family that has no name and is spelt out.
    pub fn name(self) -> Option<&'static str> {
        Method::WORDS
            .iter()
            .find(|(_, method)| *method == self)
            .map(|(name, _)| *name)
    }

    /// Whether hidden matrices are orthogonalised.
    pub fn orthogonalises(self) -> bool {
        matches!(self, Method::Steepest(_) | Method::Muon | Method::NorMuon)
    }
}
