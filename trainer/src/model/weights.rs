//! What a forward pass uses of the parameters: a leaf over the working copy, and a slot in the gradient buffer of the lane
//! that is running.

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use lockstep_autograd::{FlatBuffer, elements, elements_mut, set_gradient_slot};
use lockstep_kernels::real::bf16;
use lockstep_optim::products::Products;
use tch::{Kind, TchError, Tensor};

use crate::device::FlatTensors;
use crate::error::TrainerError;
use crate::model::arithmetic::Arithmetic;
use crate::sharding::layout::{Layout, Place};
use lockstep_inventory::TensorSpec;

/// A tensor's gradient in the current gradient buffer. Functions write into it themselves; the first write of a lane
/// replaces what was there, so that no pass zeroes the buffer.
///
/// On GPUs backward runs on a thread of libtorch's while this one waits, so slots can be shared between threads.
pub struct Slot {
    view: Mutex<Tensor>,
    fresh: AtomicBool,
}

impl Slot {
    fn new(view: &Tensor) -> Arc<Slot> {
        Arc::new(Slot {
            view: Mutex::new(view.shallow_clone()),
            fresh: AtomicBool::new(true),
        })
    }

    fn view(&self) -> MutexGuard<'_, Tensor> {
        self.view.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Whether nothing was added so far; from now on something was.
    fn take_fresh(&self) -> bool {
        self.fresh.swap(false, Ordering::Relaxed)
    }

    /// Adds a·b (two-dimensional, of the slot's shape) to the gradient.
    pub fn add_product(&self, products: Products, a: &Tensor, b: &Tensor) -> Result<(), TchError> {
        products.accumulate(&mut self.view(), self.take_fresh(), a, b)
    }

    /// Lets `add` add to the gradient's elements, row-major. The slot is in host memory.
    pub fn add_with(&self, add: impl FnOnce(&mut [f32])) {
        let mut view = self.view();
        let elements = elements_mut::<f32>(&mut view);
        if self.take_fresh() {
            elements.fill(0.0);
        }
        add(elements);
    }

    /// Adds a tensor of the slot's shape and device, of any kind, in float32.
    pub fn add_tensor(&self, gradient: &Tensor) -> Result<(), TchError> {
        let mut view = self.view();
        match self.take_fresh() {
            true => view.f_copy_(gradient),
            false => view.f_add_(gradient).map(drop),
        }
    }

    /// Lets `add` add to the gradient as a tensor.
    pub fn add_in_place(&self, add: impl FnOnce(&mut Tensor) -> Result<(), TchError>) -> Result<(), TchError> {
        let mut view = self.view();
        if self.take_fresh() {
            let _ = view.f_zero_()?;
        }
        add(&mut view)
    }

    /// Whether nothing was added since the lane began.
    pub fn is_untouched(&self) -> bool {
        self.fresh.load(Ordering::Relaxed)
    }

    /// Makes the gradient zeros.
    pub fn clear(&self) -> Result<(), TchError> {
        let _ = self.view().f_zero_()?;
        self.take_fresh();
        Ok(())
    }

    /// Goes to another place, where `fresh` says whether it is still untouched.
    fn point_to(&self, view: &Tensor, fresh: bool) {
        *self.view() = view.shallow_clone();
        self.fresh.store(fresh, Ordering::Relaxed);
    }
}

/// Leaves and slots of a model on one rank.
pub struct Weights {
    /// How products are made.
    pub products: Products,
    /// Which functions a forward pass is made of.
    pub arithmetic: Arithmetic,
    leaves: Vec<Tensor>,
    recording: Cell<bool>,
    slots: Vec<Arc<Slot>>,
    /// Views of the slots in each gradient buffer: `views[buffer][tensor]`.
    views: Vec<Vec<Tensor>>,
}

impl Weights {
    /// Leaves over `working`, slots over `gradients` (one buffer or more; none for a model that only infers), in host
    /// memory and for the host's kernels.
    pub fn new(
        inventory: &[TensorSpec],
        layout: &Layout,
        products: Products,
        working: &FlatBuffer,
        gradients: &[FlatBuffer],
    ) -> Result<Weights, TrainerError> {
        Weights::in_buffers((inventory, layout), products, Arithmetic::Host, working, gradients)
    }

    /// The same in flat memory of any device, for either set of functions.
    pub fn in_buffers<B: FlatTensors>(
        (inventory, layout): (&[TensorSpec], &Layout),
        products: Products,
        arithmetic: Arithmetic,
        working: &B,
        gradients: &[B],
    ) -> Result<Weights, TrainerError> {
        let places = || inventory.iter().zip(&layout.places);
        let copies = places()
            .map(|(spec, place)| match place.bf16 {
                true => working.view::<bf16>(place.working.start, &spec.shape),
                false => working.view::<f32>(place.working.start, &spec.shape),
            })
            .collect::<Result<Vec<_>, _>>()?;
        let mut views = Vec::with_capacity(gradients.len());
        for buffer in gradients {
            let view = |(spec, place): (&TensorSpec, &Place)| buffer.view::<f32>(place.gradient.start * 4, &spec.shape);
            views.push(places().map(view).collect::<Result<Vec<_>, _>>()?);
        }
        Weights::over(products, arithmetic, &copies, views)
    }

    /// Leaves over working copies and slots over gradients, on any device: of each tensor its working copy, and in each
    /// gradient buffer `views[buffer]` its float32 place.
    pub fn over(
        products: Products,
        arithmetic: Arithmetic,
        copies: &[Tensor],
        views: Vec<Vec<Tensor>>,
    ) -> Result<Weights, TrainerError> {
        let mut leaves = Vec::with_capacity(copies.len());
        for copy in copies {
            // With a count of changes of its own: where working copies share a buffer, a gather into a later layer's must
            // not look like a change of an earlier layer's, which the graph has kept for backward.
            let leaf = copy.f_data()?;
            leaves.push(match views.is_empty() {
                true => leaf,
                false => leaf.f_set_requires_grad(true)?,
            });
        }
        let weights = Weights {
            products,
            arithmetic,
            leaves,
            recording: Cell::new(!views.is_empty()),
            slots: views.first().into_iter().flatten().map(Slot::new).collect(),
            views,
        };
        if !weights.views.is_empty() {
            weights.begin_lane(0, false)?;
        }
        Ok(weights)
    }

    /// The leaf of a tensor, by index in the inventory.
    pub fn leaf(&self, tensor: usize) -> &Tensor {
        &self.leaves[tensor]
    }

    /// The slot of a tensor; none while nothing is recorded.
    pub fn slot(&self, tensor: usize) -> Option<Arc<Slot>> {
        self.slots.get(tensor).filter(|_| self.recording.get()).map(Arc::clone)
    }

    /// Whether a forward pass records its backward.
    pub fn is_recording(&self) -> bool {
        self.recording.get()
    }

    /// Runs `body` without recording: validation and generation.
    pub fn without_recording<T>(&self, body: impl FnOnce() -> T) -> T {
        let before = self.recording.replace(false);
        let result = tch::no_grad(body);
        self.recording.set(before);
        result
    }

    /// The elements of a float32 leaf (a gain or a bias).
    pub fn values(&self, tensor: usize) -> &[f32] {
        elements(&self.leaves[tensor])
    }

    /// Points every slot into gradient buffer `buffer` and, unless the lane adds to what is there, marks it untouched.
    pub fn begin_lane(&self, buffer: usize, adds: bool) -> Result<(), TrainerError> {
        for ((leaf, slot), view) in self.leaves.iter().zip(&self.slots).zip(&self.views[buffer]) {
            set_gradient_slot(leaf, view)?;
            slot.point_to(view, !adds);
        }
        Ok(())
    }

    /// Zeroes the slots that the lane left untouched and returns their tensors.
    pub fn end_lane(&self) -> Result<Vec<usize>, TrainerError> {
        let missing: Vec<usize> = (0..self.slots.len())
            .filter(|t| self.slots[*t].is_untouched())
            .collect();
        for &tensor in &missing {
            self.slots[tensor].clear()?;
        }
        Ok(missing)
    }

    /// The kind of activations.
    pub fn activations(&self) -> Kind {
        self.products.kind()
    }
}
