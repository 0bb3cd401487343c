//! Gradients land in views of a flat buffer, hooks fire in backward order, closures are functions of the graph, and the memory of
//! tensors is counted.
#![allow(clippy::unwrap_used, missing_docs)]

use std::sync::{Arc, Mutex};

use half::bf16;
use lockstep_autograd::{
    FlatBuffer, TensorBytes, accumulate_in_float32, custom, elements, on_gradient_ready, run_backward,
    set_gradient_slot,
};
use tch::{Kind, Tensor};

fn leaf(buffer: &mut FlatBuffer, offset: usize, values: &[f32]) -> Tensor {
    buffer
        .slice_mut::<f32>(offset, values.len())
        .unwrap()
        .copy_from_slice(values);
    buffer
        .tensor::<f32>(offset, &[values.len() as i64])
        .unwrap()
        .set_requires_grad(true)
}

#[test]
fn gradients_accumulate_in_the_flat_buffer_and_hooks_fire_in_backward_order() {
    let mut parameters = FlatBuffer::heap(1024).unwrap();
    let gradients = FlatBuffer::heap(1024).unwrap();
    let a = leaf(&mut parameters, 0, &[1.0, 2.0]);
    let b = leaf(&mut parameters, 256, &[3.0, 4.0]);
    let order = Arc::new(Mutex::new(Vec::new()));
    for (name, tensor, offset) in [("a", &a, 0), ("b", &b, 256)] {
        set_gradient_slot(tensor, &gradients.tensor::<f32>(offset, &[2]).unwrap()).unwrap();
        let order = Arc::clone(&order);
        on_gradient_ready(tensor, move || order.lock().unwrap().push(name)).unwrap();
    }
    for _ in 0..2 {
        let first = &a * 10.0;
        run_backward(&(first * &b).sum(Kind::Float)).unwrap();
    }
    assert_eq!(
        gradients.slice::<f32>(0, 2).unwrap(),
        &[60.0, 80.0],
        "two backwards of 10 b"
    );
    assert_eq!(
        gradients.slice::<f32>(256, 2).unwrap(),
        &[20.0, 40.0],
        "two backwards of 10 a"
    );
    assert_eq!(*order.lock().unwrap(), ["b", "a", "b", "a"]);
}

#[test]
fn a_tied_bf16_leaf_accumulates_in_float32() {
    let mut parameters = FlatBuffer::heap(256).unwrap();
    let gradients = FlatBuffer::heap(256).unwrap();
    parameters.slice_mut::<bf16>(0, 1).unwrap()[0] = bf16::from_f32(1.0);
    let tied = parameters.tensor::<bf16>(0, &[1]).unwrap().set_requires_grad(true);
    set_gradient_slot(&tied, &gradients.tensor::<f32>(0, &[1]).unwrap()).unwrap();
    accumulate_in_float32(&tied).unwrap();
    run_backward(&((&tied * 256.0).sum(Kind::Float) + (&tied * 1.0).sum(Kind::Float))).unwrap();
    assert_eq!(gradients.slice::<f32>(0, 1).unwrap(), &[257.0]);
}

#[test]
fn a_closure_that_wrote_into_the_slot_returns_nothing_and_the_hook_still_fires_once() {
    let mut parameters = FlatBuffer::heap(256).unwrap();
    let gradients = FlatBuffer::heap(256).unwrap();
    let w = leaf(&mut parameters, 0, &[2.0]);
    let slot = gradients.tensor::<f32>(0, &[1]).unwrap();
    set_gradient_slot(&w, &slot).unwrap();
    let fired = Arc::new(Mutex::new(0));
    let count = Arc::clone(&fired);
    on_gradient_ready(&w, move || *count.lock().unwrap() += 1).unwrap();
    let x = Tensor::from_slice(&[5.0f32]).set_requires_grad(true);
    // Two uses of one leaf, each writing its own part of the gradient straight into the slot.
    let mut sum = Tensor::zeros([1], (Kind::Float, tch::Device::Cpu));
    for _ in 0..2 {
        let y = tch::no_grad(|| &w * &x);
        let (mut slot, x2, w2) = (slot.shallow_clone(), x.shallow_clone(), w.shallow_clone());
        custom("scale", &[&w, &x], &[&y], move |gradients| {
            let dy = gradients[0].as_ref().unwrap();
            let _ = slot.f_add_(&(dy * &x2))?;
            Ok(vec![None, Some(dy * &w2)])
        })
        .unwrap();
        sum += y;
    }
    run_backward(&sum.sum(Kind::Float)).unwrap();
    assert_eq!(elements::<f32>(&slot), &[10.0]);
    assert_eq!(elements::<f32>(&x.grad()), &[4.0]);
    assert_eq!(*fired.lock().unwrap(), 1);
}

#[test]
fn a_failing_or_panicking_closure_becomes_an_error_of_backward() {
    let x = Tensor::from_slice(&[1.0f32]).set_requires_grad(true);
    let y = tch::no_grad(|| &x * 1.0);
    custom("bad", &[&x], &[&y], |_| panic!("the very reason")).unwrap();
    let error = run_backward(&y.sum(Kind::Float)).unwrap_err().to_string();
    assert!(error.contains("the very reason"), "{error}");
    let leaf = Tensor::from_slice(&[1.0f32]).set_requires_grad(true);
    on_gradient_ready(&leaf, || panic!("in a hook")).unwrap();
    let error = run_backward(&(&leaf * 2.0).sum(Kind::Float)).unwrap_err().to_string();
    assert!(error.contains("hook failed") && error.contains("in a hook"), "{error}");
}

#[test]
fn a_panic_in_a_hook_on_another_thread_is_an_error_there_and_the_next_backward_works() {
    let leaf = Tensor::from_slice(&[1.0f32]).set_requires_grad(true);
    let calls = Arc::new(Mutex::new(0));
    let count = Arc::clone(&calls);
    on_gradient_ready(&leaf, move || {
        let now = {
            let mut calls = count.lock().unwrap();
            *calls += 1;
            *calls
        };
        assert!(now > 1, "call {now} of the hook");
    })
    .unwrap();
    let loss = (&leaf * 2.0).sum(Kind::Float);
    let error = std::thread::spawn(move || run_backward(&loss).unwrap_err().to_string());
    let error = error.join().unwrap();
    assert!(error.contains("call 1 of the hook"), "{error}");
    run_backward(&(&leaf * 2.0).sum(Kind::Float)).unwrap();
    assert_eq!(*calls.lock().unwrap(), 2);
}

#[test]
fn a_hook_may_be_called_from_another_thread() {
    let leaf = Tensor::from_slice(&[1.0f32]).set_requires_grad(true);
    let fired = Arc::new(Mutex::new(None));
    let seen = Arc::clone(&fired);
    on_gradient_ready(&leaf, move || *seen.lock().unwrap() = Some(std::thread::current().id())).unwrap();
    let loss = (&leaf * 2.0).sum(Kind::Float);
    let other = std::thread::spawn(move || {
        run_backward(&loss).unwrap();
        std::thread::current().id()
    });
    assert_eq!(Some(other.join().unwrap()), *fired.lock().unwrap());
}

#[test]
fn a_tensor_keeps_its_memory_and_bad_ranges_are_refused() {
    let buffer = FlatBuffer::heap(64).unwrap();
    let tensor = buffer.tensor::<f32>(0, &[16]).unwrap();
    drop(buffer);
    assert_eq!(tensor.sum(Kind::Float).double_value(&[]), 0.0);
    let buffer = FlatBuffer::heap(64).unwrap();
    for (offset, size) in [(0, 17), (2, 1), (60, 2)] {
        assert!(buffer.tensor::<f32>(offset, &[size]).is_err(), "{offset} {size}");
        assert!(buffer.slice::<f32>(offset, size as usize).is_err());
    }
    let leaf = Tensor::from_slice(&[1.0f32, 2.0]);
    assert!(set_gradient_slot(&leaf, &Tensor::from_slice(&[1.0f32])).is_err());
}

#[test]
fn the_libraries_name_their_versions() {
    let versions = lockstep_autograd::library_versions();
    assert!(versions.starts_with("libtorch 2."), "{versions}");
    assert_eq!(versions.matches(';').count(), 2, "{versions}");
}

#[test]
fn the_memory_of_tensors_is_counted_while_they_are_there_and_in_backward_too() {
    const PIECE: u64 = 1 << 20;
    let counted = TensorBytes::count().unwrap();
    let piece = || Tensor::zeros([PIECE as i64 / 4], (Kind::Float, tch::Device::Cpu));
    let kept = piece();
    drop(piece());
    drop(piece());
    assert_eq!(counted.most(), 2 * PIECE, "one after the other");
    assert_eq!(counted.most(), PIECE, "what was there since the last question");
    let leaf = kept.set_requires_grad(true);
    run_backward(&(leaf.exp().sum(Kind::Float))).unwrap();
    let most = counted.most();
    assert!(
        (3 * PIECE..5 * PIECE).contains(&most),
        "{most}: value, exponentials, gradient"
    );
    let elsewhere =
        std::thread::spawn(move || drop(Tensor::zeros([8 * PIECE as i64], (Kind::Float, tch::Device::Cpu))));
    elsewhere.join().unwrap();
    assert!(counted.most() < 5 * PIECE, "of another thread");
    drop(counted);
    let not_counted = Tensor::zeros([8 * PIECE as i64], (Kind::Float, tch::Device::Cpu));
    let counted = TensorBytes::count().unwrap();
    drop(not_counted);
    assert_eq!(counted.most(), 0);
}
