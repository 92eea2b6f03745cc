//! From scores to the classes that are told: properties, labels, the best of them.

use crate::base::words;
use crate::results::ClassScore;
use glib::prelude::*;
use gst::prelude::*;
use ssm_models::kernels::activation::softmax;
use ssm_models::{Error, Facts};
use std::sync::Arc;

/// How scores become probabilities.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, glib::Enum)]
#[enum_type(name = "GstSsmActivation")]
pub(crate) enum Activation {
    /// What the model's file says; softmax where it says nothing.
    #[default]
    #[enum_value(name = "Model: as the model's file says, else softmax", nick = "model")]
    Model,
    /// One class is true; the probabilities add up to 1.
    #[enum_value(name = "Softmax: one class is true", nick = "softmax")]
    Softmax,
    /// Any number of classes is true, each for itself.
    #[enum_value(name = "Sigmoid: any number of classes is true", nick = "sigmoid")]
    Sigmoid,
}

/// Properties of elements that tell classes.
#[derive(Clone)]
pub(crate) struct ClassSettings {
    labels_file: Option<Arc<str>>,
    threshold: f64,
    top_k: u32,
    activation: Activation,
}

impl Default for ClassSettings {
    fn default() -> Self {
        Self { labels_file: None, threshold: 0.0, top_k: 5, activation: Activation::Model }
    }
}

impl ClassSettings {
    /// All classes are told.
    pub(crate) fn all() -> Self {
        Self { top_k: u32::MAX, ..Self::default() }
    }

    /// The property with the classes' names.
    pub(crate) fn labels_property() -> glib::ParamSpec {
        glib::ParamSpecString::builder("labels-file")
            .nick("Labels file")
            .blurb("Names of the classes, one a line")
            .mutable_ready()
            .build()
    }

    pub(crate) fn properties(&self) -> Vec<glib::ParamSpec> {
        vec![
            Self::labels_property(),
            glib::ParamSpecEnum::builder_with_default("activation", self.activation)
                .nick("Activation")
                .blurb(
                    "How scores become probabilities: sigmoid for models whose classes are true together (AudioSet); model: \
                     as its file says, else softmax",
                )
                .mutable_playing()
                .build(),
            glib::ParamSpecDouble::builder("threshold")
                .nick("Threshold")
                .blurb("Classes of a lower probability are not told")
                .minimum(0.0)
                .maximum(1.0)
                .default_value(self.threshold)
                .mutable_playing()
                .build(),
            glib::ParamSpecUInt::builder("top-k")
                .nick("Top k")
                .blurb("Classes told at most for each result, best first")
                .minimum(1)
                .default_value(self.top_k)
                .mutable_playing()
                .build(),
        ]
    }

    /// Why no class may have been told.
    pub(crate) fn silence(&self) -> String {
        format!("no class reached threshold={}", self.threshold)
    }

    /// Sets a property of [`ClassSettings::properties`]; `false` if it is none of these.
    pub(crate) fn set(&mut self, name: &str, value: &glib::Value) -> bool {
        match name {
            "labels-file" => self.labels_file = words(value),
            "threshold" => self.threshold = value.get().unwrap_or(self.threshold),
            "top-k" => self.top_k = value.get().unwrap_or(self.top_k),
            "activation" => self.activation = value.get().unwrap_or(self.activation),
            _ => return false,
        }
        true
    }

    /// Value of a property of [`ClassSettings::properties`]; `None` if it is none of these.
    pub(crate) fn get(&self, name: &str) -> Option<glib::Value> {
        Some(match name {
            "labels-file" => self.labels_file.as_deref().to_value(),
            "threshold" => self.threshold.to_value(),
            "top-k" => self.top_k.to_value(),
            "activation" => self.activation.to_value(),
            _ => return None,
        })
    }
}

/// Makes probabilities of a model's scores, and finds the best classes.
#[derive(Default)]
pub(crate) struct Ranking {
    labels: Option<Vec<Arc<str>>>,
    /// What the model's file says.
    activation: ssm_models::Activation,
    order: Vec<u32>,
}

impl Ranking {
    /// For a model of `classes` classes, of which its file says `facts`.
    ///
    /// # Errors
    /// The labels file cannot be read or has another number of lines.
    pub(crate) fn new(settings: &ClassSettings, facts: &Facts, classes: usize) -> Result<Self, Error> {
        let own = &facts.labels;
        let labels = match settings.labels_file.as_deref() {
            Some(file) => Some(labels(file, classes)?),
            None => {
                Some(own).filter(|own| own.len() == classes).map(|own| own.iter().map(|l| l.as_str().into()).collect())
            }
        };
        Ok(Self { labels, activation: facts.activation, order: Vec::new() })
    }

    /// The names of the classes, where they have any.
    pub(crate) fn labels(&self) -> &[Arc<str>] {
        self.labels.as_deref().unwrap_or_default()
    }

    /// Makes probabilities of scores.
    pub(crate) fn shares(&self, settings: &ClassSettings, scores: &mut [f32]) {
        match (settings.activation, self.activation) {
            (Activation::Softmax, _) | (Activation::Model, ssm_models::Activation::Softmax) => softmax(scores),
            (Activation::Sigmoid, _) | (Activation::Model, ssm_models::Activation::Sigmoid) => {
                scores.iter_mut().for_each(|s| *s = sigmoid(*s));
            }
        }
    }

    /// The classes to tell, of probabilities.
    pub(crate) fn best(&mut self, settings: &ClassSettings, scores: &[f32]) -> Vec<ClassScore> {
        let k = (settings.top_k as usize).min(scores.len());
        self.order.clear();
        self.order.extend(0..scores.len() as u32);
        let better = |a: &u32, b: &u32| scores[*b as usize].total_cmp(&scores[*a as usize]).then(a.cmp(b));
        if k < self.order.len() {
            self.order.select_nth_unstable_by(k, better);
        }
        self.order[..k].sort_unstable_by(better);
        let classes = self.order[..k].iter().map(|i| ClassScore {
            index: *i,
            label: self.labels.as_ref().and_then(|l| l.get(*i as usize).cloned()),
            score: f64::from(scores[*i as usize]),
        });
        classes.filter(|c| c.score >= settings.threshold).collect()
    }
}

/// 1 / (1 + exp(-x)).
pub(crate) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

/// Names of `classes` classes, one a line.
fn labels(file: &str, classes: usize) -> Result<Vec<Arc<str>>, Error> {
    let bad =
        |expected: String, got: String| Error::Config { file: file.into(), field: "labels-file".into(), expected, got };
    let bytes = crate::state::read(file).map_err(|error| match error.kind() {
        std::io::ErrorKind::InvalidInput => bad("a file or a device".into(), "something else".into()),
        _ => bad("a text file".into(), error.to_string()),
    })?;
    let text = String::from_utf8(bytes).map_err(|e| bad("text in UTF-8".into(), e.to_string()))?;
    if text.contains('\0') {
        return Err(bad("text without zero bytes".into(), "a zero byte".into()));
    }
    // Editors of Windows put a mark in front.
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    let lines: Vec<Arc<str>> = text.trim_end().lines().map(|l| l.trim().into()).collect();
    if lines.len() != classes {
        return Err(bad(format!("{classes} lines (the model's classes)"), format!("{} lines", lines.len())));
    }
    Ok(lines)
}
