//! The named tensors of a model: what they are to the optimiser and to the precision rules, how they start.

/// What a tensor is to the optimiser and to the precision rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// A hidden matrix: Muon treats it.
    Hidden,
    /// A token or position embedding (and the tied head).
    Embedding,
    /// A norm's gain.
    Norm,
    /// A bias.
    Bias,
}

impl Role {
    /// Whether its working copy is bf16 under bf16 precision; gains and biases stay float32.
    pub fn is_narrow(self) -> bool {
        matches!(self, Role::Hidden | Role::Embedding)
    }

    /// Whether weight decay applies: to matrices and embeddings, as usual.
    pub fn is_decayed(self) -> bool {
        self.is_narrow()
    }

    /// The word in `inspect`.
    pub fn word(self) -> &'static str {
        match self {
            Role::Hidden => "hidden",
            Role::Embedding => "embedding",
            Role::Norm => "norm",
            Role::Bias => "bias",
        }
    }
}

/// How a tensor starts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Initial {
    /// Zeros.
    Zeros,
    /// Ones.
    Ones,
    /// Normal with this standard deviation.
    Normal(f64),
}

/// A named parameter. Tied weights are one tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorSpec {
    /// Its name, also in the final weights.
    pub name: String,
    /// Its shape; matrices are `[out, in]`.
    pub shape: Vec<i64>,
    /// The gate that guards it.
    pub layer: usize,
    /// What it is.
    pub role: Role,
    /// How it starts.
    pub initial: Initial,
}

impl TensorSpec {
    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.shape.iter().product::<i64>() as usize
    }
}

/// Indices of a norm's gain and bias.
#[derive(Clone, Copy, Debug)]
pub struct Norm {
    /// The gain.
    pub gain: usize,
    /// The bias, where there is one.
    pub bias: Option<usize>,
}
