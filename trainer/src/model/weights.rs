//! What a forward pass uses of the parameters: a leaf over the working copy, and a slot in the gradient buffer of the lane
//! that is running.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use lockstep_autograd::{FlatBuffer, elements, elements_mut, set_gradient_slot};
use lockstep_kernels::real::bf16;
use lockstep_optim::products::Products;
use tch::{Kind, TchError, Tensor};

use crate::error::TrainerError;
use crate::sharding::layout::Layout;
use lockstep_inventory::TensorSpec;

/// A tensor's gradient in the current gradient buffer. Functions write into it themselves; the first write of a lane
/// replaces what was there, so that no pass zeroes the buffer.
pub struct Slot {
    view: RefCell<Tensor>,
    fresh: Cell<bool>,
}

impl Slot {
    /// Adds a·b (two-dimensional, of the slot's shape) to the gradient.
    pub fn add_product(&self, products: Products, a: &Tensor, b: &Tensor) -> Result<(), TchError> {
        products.accumulate(&mut self.view.borrow_mut(), self.fresh.replace(false), a, b)
    }

    /// Lets `add` add to the gradient's elements, row-major.
    pub fn add_with(&self, add: impl FnOnce(&mut [f32])) {
        let mut view = self.view.borrow_mut();
        let elements = elements_mut::<f32>(&mut view);
        if self.fresh.replace(false) {
            elements.fill(0.0);
        }
        add(elements);
    }

    /// Whether nothing was added since the lane began.
    pub fn is_untouched(&self) -> bool {
        self.fresh.get()
    }

    /// Makes the gradient zeros.
    pub fn clear(&self) {
        self.add_with(|_| ());
    }
}

/// Leaves and slots of a model on one rank.
pub struct Weights {
    /// How products are made.
    pub products: Products,
    leaves: Vec<Tensor>,
    recording: Cell<bool>,
    slots: Vec<Rc<Slot>>,
    /// Views of the slots in each gradient buffer: `views[buffer][tensor]`.
    views: Vec<Vec<Tensor>>,
}

impl Weights {
    /// Leaves over `working`, slots over `gradients` (one buffer or more; none for a model that only infers).
    pub fn new(
        inventory: &[TensorSpec],
        layout: &Layout,
        products: Products,
        working: &FlatBuffer,
        gradients: &[FlatBuffer],
    ) -> Result<Weights, TrainerError> {
        let mut leaves = Vec::with_capacity(inventory.len());
        for (spec, place) in inventory.iter().zip(&layout.places) {
            let leaf = match place.bf16 {
                true => working.tensor::<bf16>(place.working.start, &spec.shape)?,
                false => working.tensor::<f32>(place.working.start, &spec.shape)?,
            };
            leaves.push(if gradients.is_empty() {
                leaf
            } else {
                leaf.set_requires_grad(true)
            });
        }
        let mut views = Vec::with_capacity(gradients.len());
        for buffer in gradients {
            let view = |(spec, place): (&TensorSpec, &crate::sharding::layout::Place)| {
                buffer.tensor::<f32>(place.gradient.start * 4, &spec.shape)
            };
            views.push(
                inventory
                    .iter()
                    .zip(&layout.places)
                    .map(view)
                    .collect::<Result<Vec<_>, _>>()?,
            );
        }
        let slots = match views.first() {
            Some(first) => first
                .iter()
                .map(|view| {
                    Rc::new(Slot {
                        view: RefCell::new(view.shallow_clone()),
                        fresh: Cell::new(true),
                    })
                })
                .collect(),
            None => Vec::new(),
        };
        let recording = Cell::new(!gradients.is_empty());
        let weights = Weights {
            products,
            leaves,
            recording,
            slots,
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
    pub fn slot(&self, tensor: usize) -> Option<Rc<Slot>> {
        self.slots.get(tensor).filter(|_| self.recording.get()).map(Rc::clone)
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
            *slot.view.borrow_mut() = view.shallow_clone();
            slot.fresh.set(!adds);
        }
        Ok(())
    }

    /// Zeroes the slots that the lane left untouched and returns their tensors.
    pub fn end_lane(&self) -> Vec<usize> {
        let missing: Vec<usize> = (0..self.slots.len())
            .filter(|t| self.slots[*t].is_untouched())
            .collect();
        for &tensor in &missing {
            self.slots[tensor].clear();
        }
        missing
    }

    /// The kind of activations.
    pub fn activations(&self) -> Kind {
        self.products.kind()
    }
}
