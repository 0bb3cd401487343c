//! One description of a run, as `[optimizer]` keys for the replay and as a reference.

use super::{Recording, Replayed, STEPS, TENSORS};
use crate::reference::norms::{Descent, Member, Other, Product, frobenius};
use crate::reference::{Bound, Choices, Momo, Reference, Scaling, Step, Weight};

/// A group: the tensors whose names the pattern matches, a name or a beginning and `*`.
pub struct Group {
    pub pattern: &'static str,
    pub lr_scale: Option<f64>,
    pub weight_decay: Option<f64>,
}

/// A run.
pub struct Case {
    pub choices: Choices,
    pub weight_decay: f64,
    pub groups: Vec<Group>,
    /// Hidden tensors cut by rows into so many matrices.
    pub splits: Vec<(&'static str, i64)>,
    /// The table `polar`; the reference's factors are always those of the SVD.
    pub polar: &'static str,
}

impl Case {
    /// A member with rates of decay and an epsilon that differ from each other and from the defaults, so that one in the
    /// place of another shows.
    pub fn of(member: Member) -> Case {
        Case {
            choices: Choices {
                member,
                learning_rate: 1e-3,
                momentum: 0.9,
                second: 0.8,
                epsilon: 1e-3,
                hidden_scale: 3.0,
                scaling: Scaling::None,
                cautious: false,
                momo: None,
            },
            weight_decay: 0.0,
            groups: Vec::new(),
            splits: Vec::new(),
            polar: "{ method = \"svd\" }",
        }
    }

    /// The same with Momo.
    pub fn bounded(mut self, bound: Bound) -> Case {
        self.choices.momo = Some(Momo {
            bound,
            exact_decay: false,
        });
        self
    }

    /// The same with Momo's model where the step starts, after the decay.
    pub fn exact(mut self) -> Case {
        if let Some(momo) = &mut self.choices.momo {
            momo.exact_decay = true;
        }
        self
    }

    /// A learning rate that moves the loss by `part` of the first loss in the first step, by the model.
    pub fn with_first_fall(mut self, recording: &Recording, part: f64) -> Case {
        let fall = self
            .reference(recording)
            .step(&recording.gradients(0), f64::from(recording.losses[0]))
            .fall;
        self.choices.learning_rate = part * f64::from(recording.losses[0]) / fall;
        self
    }

    /// A weight decay that takes `part` of every parameter in a step.
    pub fn with_decay(mut self, part: f64) -> Case {
        self.weight_decay = part / self.choices.learning_rate;
        self
    }

    /// The keys of `[optimizer]`.
    pub fn keys(&self) -> String {
        let choices = &self.choices;
        let mut keys = vec![
            member_keys(choices.member),
            format!("momentum = {:?}", choices.momentum),
            format!("betas = [{:?}, {:?}]", choices.momentum, choices.second),
            format!("epsilon = {:?}", choices.epsilon),
            format!("hidden_scale = {:?}", choices.hidden_scale),
            format!("weight_decay = {:?}", self.weight_decay),
            format!("cautious = {}", choices.cautious),
            format!("polar = {}", self.polar),
        ];
        keys.push(match choices.scaling {
            Scaling::None => "scaling = \"none\"".to_owned(),
            Scaling::Original => "scaling = \"original\"".to_owned(),
            Scaling::MatchRms => "scaling = \"match-rms\"".to_owned(),
            Scaling::Fan => "scaling = \"fan\"".to_owned(),
        });
        if let Some(momo) = choices.momo {
            let bound = match momo.bound {
                Bound::Fixed(bound) => format!("{bound:?}"),
                Bound::Auto => "\"auto\"".to_owned(),
            };
            let decay = if momo.exact_decay { "exact" } else { "paper" };
            keys.push(format!("momo = {{ lower_bound = {bound}, decay = \"{decay}\" }}"));
        }
        if !self.groups.is_empty() {
            let groups = self.groups.iter().map(|group| {
                let scale = group
                    .lr_scale
                    .map(|c| format!(", lr_scale = {c:?}"))
                    .unwrap_or_default();
                let decay = group
                    .weight_decay
                    .map(|d| format!(", weight_decay = {d:?}"))
                    .unwrap_or_default();
                format!("{{ match = {:?}{scale}{decay} }}", group.pattern)
            });
            keys.push(format!("groups = [{}]", groups.collect::<Vec<_>>().join(", ")));
        }
        if !self.splits.is_empty() {
            let rules = TENSORS
                .iter()
                .filter(|tensor| tensor.hidden)
                .map(|tensor| format!("{{ match = {:?}, split = {} }}", tensor.name, self.parts(tensor.name)));
            keys.push(format!("hidden = [{}]", rules.collect::<Vec<_>>().join(", ")));
        }
        keys.join("\n")
    }

    fn parts(&self, name: &str) -> i64 {
        let split = self.splits.iter().find(|(tensor, _)| *tensor == name);
        split.map_or(1, |(_, parts)| *parts)
    }

    /// The reference at the start.
    pub fn reference(&self, recording: &Recording) -> Reference {
        let weights = TENSORS.iter().enumerate().map(|(i, tensor)| {
            let group = self.groups.iter().find(|group| match group.pattern.strip_suffix('*') {
                Some(beginning) => tensor.name.starts_with(beginning),
                None => tensor.name == group.pattern,
            });
            Weight {
                name: tensor.name,
                value: recording.start(i),
                parts: tensor.hidden.then(|| self.parts(tensor.name)),
                learning_rate_scale: group.and_then(|group| group.lr_scale).unwrap_or(1.0),
                weight_decay: group.and_then(|group| group.weight_decay).unwrap_or(self.weight_decay),
            }
        });
        Reference::new(self.choices.clone(), weights.collect())
    }

    /// Both through the recording: every update within 1e-3 relative, every effective learning rate within 1e-4. Returns
    /// what the reference measured.
    pub fn agrees(&self, recording: &Recording) -> Vec<Step> {
        let replayed = recording.replay(self.choices.learning_rate, &self.keys());
        let mut reference = self.reference(recording);
        let mut steps = Vec::new();
        for index in 0..STEPS {
            let before: Vec<_> = reference.weights.iter().map(|weight| weight.value.copy()).collect();
            let step = reference.step(&recording.gradients(index), f64::from(recording.losses[index]));
            let place = format!("step {index} of\n{}\n", self.keys());
            let got = replayed.effective[index];
            assert!(
                (got - step.effective).abs() <= 1e-4 * step.effective,
                "effective learning rate {got:e}, reference {:e}: {place}",
                step.effective
            );
            for (tensor, weight) in reference.weights.iter().enumerate() {
                close_update(&replayed, index, tensor, &(&weight.value - &before[tensor]), &place);
            }
            steps.push(step);
        }
        steps
    }
}

/// The update of a tensor against the reference's: within 1e-3 in the Frobenius norm.
pub fn close_update(replayed: &Replayed, step: usize, tensor: usize, expected: &tch::Tensor, place: &str) {
    let error = frobenius(&(replayed.update(step, tensor) - expected));
    let norm = frobenius(expected);
    assert!(
        error <= 1e-3 * norm,
        "update of {}: {:e} off at norm {norm:e}: {place}",
        TENSORS[tensor].name,
        error
    );
}

fn member_keys(member: Member) -> String {
    let descent = match member.descent {
        Descent::Constrained => "constrained",
        Descent::Regularized => "regularized",
    };
    let product = match member.product {
        Product::Max => "max",
        Product::L2 => "l2",
        Product::Hybrid => "hybrid",
    };
    let other = match member.other {
        Other::Sign => "sign",
        Other::AdaInf => "ada-inf",
        Other::Ada2 => "ada-2",
    };
    format!("descent = {descent:?}\nproduct = {product:?}\nother = {other:?}")
}
