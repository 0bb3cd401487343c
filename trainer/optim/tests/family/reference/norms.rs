//! The norms of blocks and their products: dual norms, directions of steepest descent, and how far each block goes.
//!
//! Data flows: moments → [`Block`] → [`global_dual`] and [`strides`]. The norms themselves are there to check that.

use tch::{Kind, Tensor};

/// How far a step goes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Descent {
    /// argmin ⟨m, d⟩ with ‖d‖ ≤ lr.
    Constrained,
    /// argmin ⟨m, d⟩ + ‖d‖² ÷ (2·lr).
    Regularized,
}

/// How the norms of blocks make one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Product {
    Max,
    L2,
    /// The largest of the hidden blocks, the root of the sum of squares of the others, and l2 of the two.
    Hybrid,
}

/// The norm of other tensors.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Other {
    /// max |xᵢ|.
    Sign,
    /// max Dᵢ·|xᵢ| ÷ |mᵢ|, with D = √v + ε.
    AdaInf,
    /// √Σ Dᵢ·xᵢ².
    Ada2,
}

/// One of the 18.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Member {
    pub descent: Descent,
    pub product: Product,
    pub other: Other,
}

impl Member {
    pub const fn new(descent: Descent, product: Product, other: Other) -> Member {
        Member {
            descent,
            product,
            other,
        }
    }

    pub fn all() -> Vec<Member> {
        let mut all = Vec::new();
        for descent in [Descent::Constrained, Descent::Regularized] {
            for product in [Product::Max, Product::L2, Product::Hybrid] {
                for other in [Other::Sign, Other::AdaInf, Other::Ada2] {
                    all.push(Member::new(descent, product, other));
                }
            }
        }
        all
    }
}

/// A block of the product norm: a hidden matrix, a part of one, or a whole other tensor.
pub struct Block {
    pub hidden: bool,
    /// LMO(m) = argmax ⟨m, u⟩ over ‖u‖ ≤ 1. The shape of m.
    pub direction: Tensor,
    /// ‖m‖_* = ⟨m, LMO(m)⟩.
    pub dual: f64,
}

fn number(scalar: &Tensor) -> f64 {
    scalar.double_value(&[])
}

/// ⟨a, b⟩.
pub fn dot(a: &Tensor, b: &Tensor) -> f64 {
    number(&(a * b).sum(Kind::Double))
}

/// ‖a‖_F.
pub fn frobenius(a: &Tensor) -> f64 {
    dot(a, a).sqrt()
}

/// U·Vᵀ of the singular value decomposition m = U·Σ·Vᵀ. `[rows, columns]`.
pub fn polar(m: &Tensor) -> Tensor {
    let (u, _, v) = m.svd(true, true);
    u.matmul(&v.transpose(0, 1))
}

/// Singular values, largest first.
pub fn singular_values(m: &Tensor) -> Tensor {
    m.svd(true, true).1
}

/// D = √v + ε, of Adam, held fixed while a step is made.
pub fn adam_diagonal(v: &Tensor, epsilon: f64) -> Tensor {
    v.sqrt() + epsilon
}

/// The spectral norm divided by s: LMO = s·polar(m), dual = s·‖m‖_nuc.
pub fn hidden_block(m: &Tensor, s: f64) -> Block {
    Block {
        hidden: true,
        direction: polar(m) * s,
        dual: s * number(&singular_values(m).sum(Kind::Double)),
    }
}

/// The three norms of other tensors; m is Adam's first moment and v its second, without bias correction.
pub fn other_block(norm: Other, m: &Tensor, v: &Tensor, epsilon: f64) -> Block {
    let d = adam_diagonal(v, epsilon);
    let (direction, dual) = match norm {
        // LMO = sign(m), dual = ‖m‖₁.
        Other::Sign => (m.sign(), number(&m.abs().sum(Kind::Double))),
        // LMO = sign(m)·|m| ÷ D = m ÷ D, dual = Σ m² ÷ D.
        Other::AdaInf => (m / &d, number(&(m.square() / &d).sum(Kind::Double))),
        // dual = √Σ m² ÷ D, LMO = m ÷ (D·dual).
        Other::Ada2 => {
            let dual = number(&(m.square() / &d).sum(Kind::Double)).sqrt();
            (m / (&d * dual), dual)
        }
    };
    Block {
        hidden: false,
        direction,
        dual,
    }
}

/// G, the dual of the product norm, over d₁… (hidden) and e₁… (others).
pub fn global_dual(product: Product, blocks: &[Block]) -> f64 {
    let hidden = || blocks.iter().filter(|block| block.hidden).map(|block| block.dual);
    let others = || blocks.iter().filter(|block| !block.hidden).map(|block| block.dual);
    match product {
        // G = Σ d + Σ e.
        Product::Max => hidden().sum::<f64>() + others().sum::<f64>(),
        // G = √(Σ d² + Σ e²).
        Product::L2 => (hidden().map(|d| d * d).sum::<f64>() + others().map(|e| e * e).sum::<f64>()).sqrt(),
        // G = √((Σ d)² + Σ e²).
        Product::Hybrid => (hidden().sum::<f64>().powi(2) + others().map(|e| e * e).sum::<f64>()).sqrt(),
    }
}

/// The factor of each block's direction in a step of learning rate 1: its multiplier, times G where regularised.
pub fn strides(member: Member, blocks: &[Block]) -> Vec<f64> {
    let g = global_dual(member.product, blocks);
    let hidden: f64 = blocks.iter().filter(|block| block.hidden).map(|block| block.dual).sum();
    let length = match member.descent {
        Descent::Constrained => 1.0,
        Descent::Regularized => g,
    };
    let multiplier = |block: &Block| match (member.product, block.hidden) {
        (Product::Max, _) => 1.0,
        (Product::L2, _) | (Product::Hybrid, false) => block.dual / g,
        (Product::Hybrid, true) => hidden / g,
    };
    blocks.iter().map(|block| multiplier(block) * length).collect()
}

/// The norm of x whose dual and LMO [`hidden_block`] gives: ‖x‖₂ ÷ s.
pub fn hidden_norm(x: &Tensor, s: f64) -> f64 {
    number(&singular_values(x).max()) / s
}

/// The norm of x whose dual and LMO [`other_block`] gives.
pub fn other_norm(norm: Other, x: &Tensor, m: &Tensor, v: &Tensor, epsilon: f64) -> f64 {
    let d = adam_diagonal(v, epsilon);
    match norm {
        Other::Sign => number(&x.abs().max()),
        Other::AdaInf => number(&(&d * x.abs() / m.abs()).max()),
        Other::Ada2 => number(&(&d * x.square()).sum(Kind::Double)).sqrt(),
    }
}

/// The product norm of blocks' norms, each `(is hidden, norm)`.
pub fn product_norm(product: Product, norms: &[(bool, f64)]) -> f64 {
    let largest = |which: &dyn Fn(bool) -> bool| {
        let kept = norms.iter().filter(|(hidden, _)| which(*hidden));
        kept.map(|(_, norm)| *norm).fold(0.0, f64::max)
    };
    let squares = |which: &dyn Fn(bool) -> bool| {
        let kept = norms.iter().filter(|(hidden, _)| which(*hidden));
        kept.map(|(_, norm)| norm * norm).sum::<f64>()
    };
    match product {
        Product::Max => largest(&|_| true),
        Product::L2 => squares(&|_| true).sqrt(),
        Product::Hybrid => (largest(&|hidden| hidden).powi(2) + squares(&|hidden| !hidden)).sqrt(),
    }
}
