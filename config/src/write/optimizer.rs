//! `[optimizer]` as TOML: the keys that belong to its method, every value as resolved.

use super::{Text, number};
use crate::sections::*;

pub(super) fn write(optimizer: &OptimizerSection, text: &mut Text) {
    let method = optimizer.method;
    match (method.name(), method) {
        (None, Method::Steepest(steepest)) => {
            text.key("descent", steepest.descent.word());
            text.key("product", steepest.product.word());
            text.key("other", steepest.other.word());
        }
        (name, _) => text.optional("method", name),
    }
    let has_second_moment = !matches!(method, Method::Sgd | Method::Momo);
    if !matches!(method, Method::AdamW | Method::MomoAdam) {
        text.key("momentum", optimizer.momentum);
    }
    if has_second_moment {
        text.key("betas", optimizer.betas.to_vec());
        text.key("epsilon", optimizer.epsilon);
    }
    text.key("nesterov", optimizer.nesterov);
    if method == Method::Sgd {
        text.key("normalized", optimizer.normalized);
    }
    text.key("weight_decay", optimizer.weight_decay);
    text.key("cautious", optimizer.cautious);
    text.optional("clip_norm", optimizer.clip_norm);
    if method.orthogonalises() {
        text.key("hidden_scale", optimizer.hidden_scale);
        text.key("scaling", optimizer.scaling.word());
        text.line(&polar(&optimizer.polar));
        if let Some(rules) = &optimizer.hidden {
            let rules: Vec<String> = rules.iter().map(hidden_rule).collect();
            text.line(&format!("hidden = [{}]", rules.join(", ")));
        }
    }
    if let Some(momo) = optimizer.momo {
        text.line(&model(momo, matches!(method, Method::Momo | Method::MomoAdam)));
    }
    if !optimizer.groups.is_empty() {
        let groups: Vec<String> = optimizer.groups.iter().map(group).collect();
        text.line(&format!("groups = [{}]", groups.join(", ")));
    }
}

/// A text as TOML.
fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

fn polar(polar: &PolarSection) -> String {
    let steps = format!("steps = {}, precision = \"{}\"", polar.steps, polar.precision.word());
    match polar.method {
        PolarMethod::PolarExpress => format!("polar = {{ method = \"polar-express\", {steps} }}"),
        PolarMethod::NewtonSchulz(table) => {
            format!(
                "polar = {{ method = \"newton-schulz\", table = \"{}\", {steps} }}",
                table.word()
            )
        }
        PolarMethod::Gram { restart } => format!("polar = {{ method = \"gram\", restart = {restart}, {steps} }}"),
        PolarMethod::Svd => "polar = { method = \"svd\" }".to_owned(),
    }
}

fn model(momo: MomoSection, stands_alone: bool) -> String {
    let bound = match momo.lower_bound {
        LowerBound::Fixed(bound) => number(bound),
        LowerBound::Auto => "\"auto\"".to_owned(),
    };
    match stands_alone {
        true => format!("momo = {{ lower_bound = {bound} }}"),
        false => format!("momo = {{ lower_bound = {bound}, decay = \"{}\" }}", momo.decay.word()),
    }
}

fn hidden_rule(rule: &HiddenRule) -> String {
    let pattern = quoted(&rule.pattern);
    match rule.hidden {
        None => quoted(&format!("!{}", rule.pattern)),
        Some(Split::Heads) => format!("{{ match = {pattern}, split = \"heads\" }}"),
        Some(Split::Parts(parts)) => format!("{{ match = {pattern}, split = {parts} }}"),
    }
}

fn group(group: &GroupRule) -> String {
    let decay = group
        .weight_decay
        .map_or(String::new(), |decay| format!(", weight_decay = {}", number(decay)));
    format!(
        "{{ match = {}, lr_scale = {}{decay} }}",
        quoted(&group.pattern),
        number(group.lr_scale)
    )
}
