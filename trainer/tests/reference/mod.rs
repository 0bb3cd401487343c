//! The reference: a GPT-2 and its optimisers in plain float64 tensor code, by library autograd. Slow and obvious.

use std::collections::HashMap;

use lockstep_inventory::gpt2::Shape;
use tch::{Device, Kind, Tensor};

/// Σ over counted targets of −log p(target), a float64 scalar with a graph; `names` are the parameters.
pub(crate) fn loss(
    s: Shape,
    rows: usize,
    columns: usize,
    names: &HashMap<String, Tensor>,
    inputs: &Tensor,
    targets: &Tensor,
) -> Tensor {
    let (b, t, d, h) = (rows as i64, columns as i64, i64::from(s.width), i64::from(s.heads));
    let get = |name: &str| names.get(name);
    let norm = |x: &Tensor, name: &str| {
        let centred = x - x.mean_dim(-1, true, Kind::Double);
        let variance = (&centred * &centred).mean_dim(-1, true, Kind::Double);
        let y = centred / (variance + 1e-5).sqrt() * get(&format!("{name}.weight")).unwrap();
        match get(&format!("{name}.bias")) {
            Some(bias) => y + bias,
            None => y,
        }
    };
    let linear = |x: &Tensor, name: &str| {
        let y = x.matmul(&get(&format!("{name}.weight")).unwrap().transpose(0, 1));
        match get(&format!("{name}.bias")) {
            Some(bias) => y + bias,
            None => y,
        }
    };
    let wte = get("wte.weight").unwrap();
    let mut x =
        wte.index_select(0, &inputs.flatten(0, -1)).reshape([b, t, d]) + get("wpe.weight").unwrap().narrow(0, 0, t);
    let mask = Tensor::ones([t, t], (Kind::Bool, Device::Cpu)).tril(0).logical_not();
    for layer in 0..s.layers {
        let name = |part: &str| format!("blocks.{layer}.{part}");
        let qkv = linear(&norm(&x, &name("norm1")), &name("qkv"));
        let part = |i: i64| qkv.narrow(2, i * d, d).reshape([b, t, h, d / h]).transpose(1, 2);
        let unit = |x: Tensor| {
            if s.qk_norm {
                &x / ((&x * &x).mean_dim(-1, true, Kind::Double) + 1e-6).sqrt()
            } else {
                x
            }
        };
        let (q, k, v) = (unit(part(0)), unit(part(1)), part(2));
        let scores = q.matmul(&k.transpose(-2, -1)) / ((d / h) as f64).sqrt();
        let p = scores.masked_fill(&mask, f64::NEG_INFINITY).softmax(-1, Kind::Double);
        let mixed = p.matmul(&v).transpose(1, 2).reshape([b, t, d]);
        x = &x + linear(&mixed, &name("out"));
        let up = linear(&norm(&x, &name("norm2")), &name("up"));
        x = &x + linear(&up.gelu("tanh"), &name("down"));
    }
    let logits = norm(&x, "norm").reshape([b * t, d]).matmul(&wte.transpose(0, 1));
    let all = logits.log_softmax(-1, Kind::Double);
    let flat = targets.flatten(0, -1);
    let counted = flat.ge(0).to_kind(Kind::Double);
    let picked = all.gather(1, &flat.clamp_min(0).unsqueeze(1), false).squeeze_dim(1);
    -(picked * counted).sum(Kind::Double)
}

/// The polar factor by five iterations of Polar Express, in float64, from the published table.
#[allow(dead_code)] // Each test binary uses its part of the reference.
pub(crate) fn polar_express(m: &Tensor) -> Tensor {
    let tall = m.size()[0] > m.size()[1];
    let norm = m.square().sum(Kind::Double).sqrt();
    let mut x = m / (norm * 1.01);
    if tall {
        x = x.transpose(0, 1);
    }
    for (a, b, c) in [
        (8.28721201814563, -23.595886519098837, 17.300387312530933),
        (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
        (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
        (3.3184196573706015, -2.488488024314874, 0.51004894012372),
        (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
    ] {
        let (a, b, c): (f64, f64, f64) = (a / 1.01, b / 1.01f64.powi(3), c / 1.01f64.powi(5));
        let gram = x.matmul(&x.transpose(0, 1));
        x = &x * a + (&gram * b + gram.matmul(&gram) * c).matmul(&x);
    }
    if tall { x.transpose(0, 1) } else { x }
}
