//! Matrix products in the run's precision, by the way that is fast on this instruction set.
//!
//! bf16 operands are multiplied with float32 accumulation and the result is rounded once. Where the processor multiplies
//! bf16 itself (AVX-512 BF16 or AMX) libtorch's bf16 product does that; elsewhere its bf16 product is a tenth as fast as
//! its float32 one (measured on AVX2: 9 against 90 GFLOP/s), so operands are widened, which is exact, multiplied in
//! float32, and rounded. The choice follows from the instruction set alone and is part of a member's fingerprint.

use tch::{Device, Kind, TchError, Tensor};

/// How products are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Products {
    /// float32 operands and results.
    Float32,
    /// bf16 operands and results by the processor's own instructions, or the GPU's.
    NativeBf16,
    /// bf16 operands and results by float32 products of widened operands.
    WidenedBf16,
}

impl Products {
    /// The way for a precision on this processor.
    pub fn for_precision(bf16: bool) -> Products {
        match bf16 {
            false => Products::Float32,
            true if native_bf16() => Products::NativeBf16,
            true => Products::WidenedBf16,
        }
    }

    /// The way for a precision on a device: GPUs multiply bf16 themselves.
    pub fn for_device(bf16: bool, device: Device) -> Products {
        match device {
            Device::Cpu => Products::for_precision(bf16),
            _ if bf16 => Products::NativeBf16,
            _ => Products::Float32,
        }
    }

    /// The kind of operands and results.
    pub fn kind(self) -> Kind {
        match self {
            Products::Float32 => Kind::Float,
            Products::NativeBf16 | Products::WidenedBf16 => Kind::BFloat16,
        }
    }

    /// The kind in which batched products inside one function (attention) are made.
    pub fn inner_kind(self) -> Kind {
        match self {
            Products::NativeBf16 => Kind::BFloat16,
            Products::Float32 | Products::WidenedBf16 => Kind::Float,
        }
    }

    /// The name in a fingerprint.
    pub fn name(self) -> &'static str {
        match self {
            Products::Float32 => "fp32",
            Products::NativeBf16 => "bf16-native",
            Products::WidenedBf16 => "bf16-widened",
        }
    }

    /// An operand that several products will use, in the form in which they read it: widened once, not at each of them.
    pub fn operand(self, matrix: &Tensor) -> Result<Tensor, TchError> {
        match self {
            Products::Float32 | Products::NativeBf16 => Ok(matrix.shallow_clone()),
            Products::WidenedBf16 => matrix.f_to_kind(Kind::Float),
        }
    }

    /// a·b, both two-dimensional and of [`Products::kind`] (or an [`Products::operand`]), in [`Products::kind`].
    pub fn multiply(self, a: &Tensor, b: &Tensor) -> Result<Tensor, TchError> {
        match self {
            Products::Float32 | Products::NativeBf16 => a.f_mm(b),
            Products::WidenedBf16 => {
                let (a, b) = (a.f_to_kind(Kind::Float)?, b.f_to_kind(Kind::Float)?);
                a.f_mm(&b)?.f_to_kind(Kind::BFloat16)
            }
        }
    }

    /// slot ← a·b (`fresh`) or slot + a·b, the slot float32.
    pub fn accumulate(self, slot: &mut Tensor, fresh: bool, a: &Tensor, b: &Tensor) -> Result<(), TchError> {
        match self {
            Products::NativeBf16 => {
                let product = a.f_mm(b)?;
                if fresh {
                    slot.f_copy_(&product)
                } else {
                    slot.f_add_(&product).map(drop)
                }
            }
            Products::Float32 | Products::WidenedBf16 => {
                let (a, b) = (a.f_to_kind(Kind::Float)?, b.f_to_kind(Kind::Float)?);
                if fresh {
                    a.f_mm_out(slot, &b).map(drop)
                } else {
                    slot.f_addmm_(&a, &b).map(drop)
                }
            }
        }
    }
}

/// Whether the processor multiplies bf16 matrices itself.
fn native_bf16() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        std::arch::is_x86_feature_detected!("avx512bf16")
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        false
    }
}
