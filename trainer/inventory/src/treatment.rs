//! What the optimiser does with each tensor: the rules of a config laid over an inventory.
//!
//! `optimizer.hidden` decides which tensors are hidden matrices (the model's own word where it is not given) and into
//! how many parts they are taken; `optimizer.groups` gives a learning-rate scale and weight decay. The first rule that
//! matches a tensor's name counts. A rule that decides nothing is an error: it is misspelt, or shadowed by another.

use glob::Pattern;
use lockstep_config::{Method, OptimizerSection, Split};

use crate::tensors::{Role, TensorSpec};

/// What the optimiser takes a tensor for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// `parts` matrices of equal rows, one below the other, each with a polar factor of its own.
    Hidden {
        /// Number of matrices.
        parts: usize,
        /// Rows of each.
        rows: usize,
        /// Columns of each: the product of the tensor's further dimensions.
        columns: usize,
    },
    /// An other tensor.
    Other,
}

/// What the optimiser does with a tensor, and why.
#[derive(Clone, Debug, PartialEq)]
pub struct Treatment {
    /// Hidden matrix or other tensor.
    pub kind: Use,
    /// Its learning rate is the plan's times this.
    pub lr_scale: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Whether that is `optimizer.weight_decay`, in whose place a plan may have another value.
    pub follows_plan: bool,
    /// Why, for people.
    pub reason: String,
}

impl Treatment {
    /// Whether the tensor is orthogonalised.
    pub fn is_hidden(&self) -> bool {
        matches!(self.kind, Use::Hidden { .. })
    }

    /// Number of polar factors of a step.
    pub fn parts(&self) -> usize {
        match self.kind {
            Use::Hidden { parts, .. } => parts,
            Use::Other => 0,
        }
    }
}

/// Why rules cannot be followed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TreatmentError {
    /// A rule decides about no tensor.
    #[error(
        "the pattern \"{pattern}\" in `optimizer.{key}` decides about no tensor{hint}; correct it or take it out (`lockstep inspect CONFIG` lists the tensors)"
    )]
    Unused {
        /// `hidden` or `groups`.
        key: &'static str,
        /// The pattern.
        pattern: String,
        /// What it matched that an earlier rule had decided.
        hint: String,
    },
    /// A vector cannot be a hidden matrix.
    #[error(
        "`optimizer.hidden` makes {tensor} of shape {shape:?} a hidden matrix, but only a tensor with two or more dimensions has singular values; narrow the pattern \"{pattern}\", or put \"!{tensor}\" before it"
    )]
    Vector {
        /// The tensor.
        tensor: String,
        /// Its shape.
        shape: Vec<i64>,
        /// The rule.
        pattern: String,
    },
    /// Parts of equal rows are not possible.
    #[error(
        "`optimizer.hidden` splits {tensor} of shape {shape:?} into {parts}, which its {rows} rows do not allow; give a divisor of {rows} as `split` of the pattern \"{pattern}\""
    )]
    Split {
        /// The tensor.
        tensor: String,
        /// Its shape.
        shape: Vec<i64>,
        /// Its rows.
        rows: i64,
        /// What was asked for, in words.
        parts: String,
        /// The rule.
        pattern: String,
    },
    /// A pattern that cannot be read.
    #[error("the pattern \"{pattern}\" in `optimizer.{key}` cannot be read: {reason}")]
    Pattern {
        /// `hidden` or `groups`.
        key: &'static str,
        /// The pattern.
        pattern: String,
        /// What the reader says.
        reason: String,
    },
}

/// The rules of one key with the count of tensors that each has decided about.
struct Rules<'a> {
    key: &'static str,
    patterns: Vec<(&'a str, Pattern)>,
    decided: Vec<usize>,
    shadowed: Vec<Option<String>>,
}

impl<'a> Rules<'a> {
    fn new(key: &'static str, patterns: impl Iterator<Item = &'a str>) -> Result<Rules<'a>, TreatmentError> {
        let patterns = patterns
            .map(|text| match Pattern::new(text) {
                Ok(pattern) => Ok((text, pattern)),
                Err(error) => Err(TreatmentError::Pattern {
                    key,
                    pattern: text.to_owned(),
                    reason: error.msg.to_owned(),
                }),
            })
            .collect::<Result<Vec<_>, _>>()?;
        let count = patterns.len();
        Ok(Rules {
            key,
            patterns,
            decided: vec![0; count],
            shadowed: vec![None; count],
        })
    }

    /// The first rule that matches.
    fn decide(&mut self, name: &str) -> Option<usize> {
        let mut matching = (0..self.patterns.len()).filter(|i| self.patterns[*i].1.matches(name));
        let first = matching.next()?;
        for later in matching {
            self.shadowed[later].get_or_insert_with(|| name.to_owned());
        }
        self.decided[first] += 1;
        Some(first)
    }

    /// That every rule has decided about something.
    fn all_used(self) -> Result<(), TreatmentError> {
        let Some(unused) = self.decided.iter().position(|count| *count == 0) else {
            return Ok(());
        };
        let hint = match &self.shadowed[unused] {
            Some(name) => format!(" (a rule before it has decided about {name})"),
            None => String::new(),
        };
        Err(TreatmentError::Unused {
            key: self.key,
            pattern: self.patterns[unused].0.to_owned(),
            hint,
        })
    }
}

/// Lays the rules of a config over an inventory. `head_width`: rows of a part under `split = "heads"`, where the model
/// has heads.
///
/// # Errors
/// A rule that decides about no tensor, a hidden vector, a split that does not divide.
pub fn treatments(
    section: &OptimizerSection,
    inventory: &[TensorSpec],
    head_width: Option<i64>,
) -> Result<Vec<Treatment>, TreatmentError> {
    let orthogonalises = section.method.orthogonalises();
    // One decay for all is part of these two methods (PAPERS: momo's proximal form).
    let decays_all = matches!(section.method, Method::Momo | Method::MomoAdam);
    let rules = section.hidden.as_deref().unwrap_or_default();
    let mut hidden = Rules::new("hidden", rules.iter().map(|rule| rule.pattern.as_str()))?;
    let mut groups = Rules::new("groups", section.groups.iter().map(|group| group.pattern.as_str()))?;
    let mut out = Vec::with_capacity(inventory.len());
    for spec in inventory {
        let (kind, mut reason) = match (orthogonalises, section.hidden.is_some()) {
            (false, _) => (
                Use::Other,
                format!("the method treats every tensor alike ({})", spec.role.word()),
            ),
            (true, true) => match hidden.decide(&spec.name) {
                None => (Use::Other, "no rule of optimizer.hidden matches".to_owned()),
                Some(rule) => {
                    let pattern = &rules[rule].pattern;
                    match rules[rule].hidden {
                        None => (Use::Other, format!("optimizer.hidden \"!{pattern}\"")),
                        Some(split) => (
                            matrices(spec, pattern, split, head_width)?,
                            format!("optimizer.hidden \"{pattern}\""),
                        ),
                    }
                }
            },
            (true, false) if spec.role == Role::Hidden => (
                matrices(spec, "", Split::Parts(1), head_width)?,
                "the model says hidden".to_owned(),
            ),
            (true, false) => (Use::Other, format!("the model says {}", spec.role.word())),
        };
        let is_decayed = spec.role.is_decayed() || decays_all;
        let mut follows_plan = is_decayed;
        let by_role = if is_decayed { section.weight_decay } else { 0.0 };
        let (mut lr_scale, mut weight_decay) = (1.0, by_role);
        if let Some(group) = groups.decide(&spec.name) {
            let group = &section.groups[group];
            lr_scale = group.lr_scale;
            weight_decay = group.weight_decay.unwrap_or(by_role);
            follows_plan &= group.weight_decay.is_none();
            reason = format!("{reason}; optimizer.groups \"{}\"", group.pattern);
        }
        out.push(Treatment {
            kind,
            lr_scale,
            weight_decay,
            follows_plan,
            reason,
        });
    }
    hidden.all_used()?;
    groups.all_used()?;
    Ok(out)
}

/// A tensor as hidden matrices, `[shape[0], rest]` cut by rows.
fn matrices(spec: &TensorSpec, pattern: &str, split: Split, head_width: Option<i64>) -> Result<Use, TreatmentError> {
    if spec.shape.len() < 2 {
        return Err(TreatmentError::Vector {
            tensor: spec.name.clone(),
            shape: spec.shape.clone(),
            pattern: pattern.to_owned(),
        });
    }
    let (rows, columns) = (spec.shape[0], spec.shape[1..].iter().product::<i64>());
    let (parts, words) = match (split, head_width) {
        (Split::Parts(parts), _) => (Some(i64::from(parts)), format!("{parts} parts")),
        (Split::Heads, Some(width)) => (
            (rows % width == 0).then_some(rows / width),
            format!("heads of {width} rows"),
        ),
        (Split::Heads, None) => (None, "heads, which this model does not have".to_owned()),
    };
    match parts {
        Some(parts) if parts > 0 && rows % parts == 0 => Ok(Use::Hidden {
            parts: parts as usize,
            rows: (rows / parts) as usize,
            columns: columns as usize,
        }),
        _ => Err(TreatmentError::Split {
            tensor: spec.name.clone(),
            shape: spec.shape.clone(),
            rows,
            parts: words,
            pattern: pattern.to_owned(),
        }),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use lockstep_config::{GroupRule, HiddenRule, Precision};

    use super::*;
    use crate::tensors::Initial;

    fn spec(name: &str, shape: &[i64], role: Role) -> TensorSpec {
        TensorSpec {
            name: name.to_owned(),
            shape: shape.to_vec(),
            layer: 0,
            role,
            initial: Initial::Zeros,
        }
    }

    fn inventory() -> Vec<TensorSpec> {
        vec![
            spec("wte.weight", &[50, 12], Role::Embedding),
            spec("blocks.0.norm1.weight", &[12], Role::Norm),
            spec("blocks.0.qkv.weight", &[36, 12], Role::Hidden),
            spec("blocks.0.conv.weight", &[12, 4, 3], Role::Hidden),
        ]
    }

    fn section(method: &str) -> OptimizerSection {
        let text = format!("method = \"{method}\"\nweight_decay = 0.1");
        OptimizerSection::parse(text.parse().unwrap(), "test", Precision::Fp32).unwrap()
    }

    fn rule(pattern: &str, hidden: Option<Split>) -> HiddenRule {
        HiddenRule {
            pattern: pattern.to_owned(),
            hidden,
        }
    }

    fn group(pattern: &str, lr_scale: f64, weight_decay: Option<f64>) -> GroupRule {
        GroupRule {
            pattern: pattern.to_owned(),
            lr_scale,
            weight_decay,
        }
    }

    fn kinds(section: &OptimizerSection) -> Vec<Use> {
        let all = treatments(section, &inventory(), Some(6)).unwrap();
        all.into_iter().map(|treatment| treatment.kind).collect()
    }

    const fn hidden(parts: usize, rows: usize, columns: usize) -> Use {
        Use::Hidden { parts, rows, columns }
    }

    #[test]
    fn without_rules_the_model_says_what_is_hidden_and_a_convolution_is_out_by_rest() {
        let expected = [Use::Other, Use::Other, hidden(1, 36, 12), hidden(1, 12, 12)];
        assert_eq!(kinds(&section("muon")), expected);
        assert_eq!(kinds(&section("adamw")), [Use::Other; 4]);
    }

    #[test]
    fn the_first_rule_that_matches_decides_and_splits() {
        let mut section = section("muonmax");
        section.hidden = Some(vec![
            rule("*.norm*", None),
            rule("*.qkv.*", Some(Split::Parts(3))),
            rule("blocks.*", Some(Split::Parts(1))),
        ]);
        let expected = [Use::Other, Use::Other, hidden(3, 12, 12), hidden(1, 12, 12)];
        assert_eq!(kinds(&section), expected);
        section.hidden = Some(vec![rule("*.qkv.*", Some(Split::Heads))]);
        assert_eq!(kinds(&section), [Use::Other, Use::Other, hidden(6, 6, 12), Use::Other]);
    }

    #[test]
    fn groups_scale_the_learning_rate_and_replace_the_decay_which_spares_norms_otherwise() {
        let mut section = section("muonadam");
        section.groups = vec![group("wte.*", 0.5, None), group("*.norm*", 1.0, Some(0.3))];
        let all = treatments(&section, &inventory(), None).unwrap();
        let decays: Vec<f64> = all.iter().map(|treatment| treatment.weight_decay).collect();
        let scales: Vec<f64> = all.iter().map(|treatment| treatment.lr_scale).collect();
        assert_eq!(decays, [0.1, 0.3, 0.1, 0.1]);
        assert_eq!(scales, [0.5, 1.0, 1.0, 1.0]);
        section.groups.clear();
        assert_eq!(treatments(&section, &inventory(), None).unwrap()[1].weight_decay, 0.0);
    }

    #[test]
    fn rules_that_cannot_be_followed_are_refused_by_name() {
        let refused = |rules: Vec<HiddenRule>, groups: Vec<GroupRule>, parts: &[&str]| {
            let mut section = section("muon");
            section.hidden = (!rules.is_empty()).then_some(rules);
            section.groups = groups;
            let sentence = treatments(&section, &inventory(), Some(5)).unwrap_err().to_string();
            for part in parts {
                assert!(sentence.contains(part), "{part:?} is missing in: {sentence}");
            }
        };
        let whole = Some(Split::Parts(1));
        refused(
            vec![rule("blocks.9.*", whole)],
            vec![],
            &["blocks.9.*", "no tensor", "optimizer.hidden"],
        );
        refused(
            vec![rule("*.qkv.*", whole), rule("blocks.0.qkv.weight", None)],
            vec![],
            &["blocks.0.qkv.weight", "before it"],
        );
        refused(
            vec![],
            vec![group("lm_head*", 2.0, None)],
            &["lm_head*", "no tensor", "optimizer.groups"],
        );
        refused(
            vec![rule("*.norm1.*", whole)],
            vec![],
            &["blocks.0.norm1.weight", "[12]", "two or more"],
        );
        refused(
            vec![rule("*.qkv.*", Some(Split::Parts(5)))],
            vec![],
            &["blocks.0.qkv.weight", "5 parts", "36 rows"],
        );
        refused(
            vec![rule("*.qkv.*", Some(Split::Heads))],
            vec![],
            &["blocks.0.qkv.weight", "heads of 5 rows", "36 rows"],
        );
        refused(vec![rule("a[", whole)], vec![], &["a[", "cannot be read"]);
    }
}
