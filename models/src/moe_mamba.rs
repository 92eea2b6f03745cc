//! MoE-Mamba (Pióro et al. 2024, arXiv 2401.04081, Figure 3): Mamba layers alternating with layers of experts, of which
//! each token visits one.
//!
//! Loads what the authors' code (llm-random) writes. Routing is without capacity: what a token gets depends on that token
//! alone, so chunks and batches change nothing. Which part comes first in a block, the experts' activation and the number
//! of experts per token are not in the tensors; they come from the configuration (`block_modules`, `expert` or
//! `moe_inner_expert`, `activation_type`, `routing_top_k`), else Mamba first, ReLU or, gated, SiLU, and one.

mod card;

use crate::card::{Network, Weights};
use crate::checkpoint::{Checkpoint, Reader};
use crate::config::Fields;
use crate::error::Error;
use crate::families::{Family, Options};
use crate::golden::Golden;
use crate::golden_sequence;
use crate::mamba::{head, head_scratch_len};
use crate::mixer::Mixer;
use crate::mixers::AnyMixer;
use crate::model::{Facts, Info, Model, Row, Scratch, Signal, carve, embed, line};
use crate::stack::{Layer, Stack};
use crate::state::{State, StateLayout};
use ssm_kernels::linear::Linear;
use ssm_kernels::moe_route::{Experts, Tensors};
use ssm_kernels::norm::{Kind, Norm};
use ssm_kernels::{Act, CpuLevel, Cx};
use std::ops::Range;
use std::sync::Arc;

pub(crate) const FAMILY: Family = Family {
    name: "moe_mamba",
    detect: |f| prefix(f).is_some(),
    open: |file, options| Ok(Arc::new(MoeMamba::load(file, options)?)),
    verify,
};

const EMBEDDING: &str = "embedding_layer.layers.0.weight";

/// What stands before every name: nothing, or the key that a training run nests the model under.
fn prefix(f: &Checkpoint) -> Option<&'static str> {
    let block = |p: &str, n: &str| f.shape(&format!("{p}encoder.blocks.block_0.block.{n}.A_log")).is_some();
    let known = [
        "residual_mamba.layer.mamba",
        "residual_vanilla_mamba.layer.vanilla_mamba",
        "residual_parallel.layer.parallel.layers.0",
        "residual_parallel.layer.parallel.layers.1",
    ];
    ["", "model."]
        .into_iter()
        .find(|p| f.shape(&format!("{p}{EMBEDDING}")).is_some() && known.iter().any(|n| block(p, n)))
}

struct MoeMamba {
    info: Info,
    layout: StateLayout,
    embedding: Vec<f32>, // (V, D)
    stack: Stack,
    head: Linear, // (V, D)
}

/// What the tensors of the experts do not say.
#[derive(Debug)]
pub(crate) struct Routing {
    plain: Act,
    gated: Act,
    pub(crate) top_k: usize,
}

impl Routing {
    pub(crate) fn read(fields: &Fields<'_>) -> Result<Self, Error> {
        let act = |name: &str, word: &str| match word {
            "relu" => Ok(Act::Relu),
            "silu" => Ok(Act::Silu),
            "gelu" => Ok(Act::Gelu),
            "sigmoid" => Ok(Act::Sigmoid),
            other => Err(fields.bad(name, "relu, silu, gelu or sigmoid", other)),
        };
        let said = match fields.word(&["activation_type", "activation_name"])? {
            Some(word) => Some(act("activation_type", &word)?),
            None => None,
        };
        let (plain, gated) = (said.unwrap_or(Act::Relu), said.unwrap_or(Act::Silu));
        let (plain, gated) = match fields.word(&["expert", "moe_inner_expert"])?.as_deref() {
            None | Some("ff" | "ff_gated") => (plain, gated),
            Some("relu") => (Act::Relu, gated),
            Some("swi_glu") => (plain, Act::Silu),
            Some("geglu") => (plain, Act::Gelu),
            Some(other) => {
                return Err(fields.bad("expert", "ff, relu, ff_gated, swi_glu or geglu", other));
            }
        };
        if let Some(exponent) = fields.number(&["moe_values_exp"])?.filter(|v| *v != 1.0) {
            return Err(fields.bad("moe_values_exp", "1", exponent));
        }
        Ok(Self { plain, gated, top_k: fields.size(&["routing_top_k", "top_k"])?.unwrap_or(1) })
    }
}

/// Reads the layer of experts at the reader's place, D to D.
pub(crate) fn load_experts(
    w: &Reader<'_>,
    level: CpuLevel,
    d: usize,
    routing: &Routing,
    fields: &Fields<'_>,
) -> Result<Experts, Error> {
    let router = if w.has("router.gate") { "router.gate" } else { "gating.gate" };
    let inner = w.at("expert_inner_function.");
    let dim = |name: &str, i: usize| inner.shape(name).and_then(|s| s.get(i)).copied().unwrap_or(0).max(1);
    let (experts, f) = (dim("lin1_weight", 0), dim("lin1_weight", 2));
    let router = w.take(router, &[d, experts])?;
    let shape = [experts, d, f];
    let mut lin1 = inner.take("lin1_weight", &shape)?;
    let mut gate = inner.take_optional("gate_weight", &shape)?;
    let mut act = if gate.is_some() { routing.gated } else { routing.plain };
    if let Some(other) = inner.take_optional("swi_glu_gate_weight", &shape)? {
        // The older code: silu(lin1 h) · (swi_glu_gate h).
        (lin1, gate, act) = (other, Some(lin1), Act::Silu);
    }
    if routing.top_k == 0 || routing.top_k > experts {
        return Err(fields.bad("routing_top_k", format!("1 to {experts} experts"), routing.top_k));
    }
    let lin2 = inner.take("lin2_weight", &[experts, f, d])?;
    let t = Tensors { experts, d, f, d_out: d, router: &router, lin1: &lin1, gate: gate.as_deref(), lin2: &lin2 };
    Ok(Experts::pack(level, &t, act, routing.top_k))
}

/// LayerNorm (`weight`, `bias`) or RMSNorm with a shift (`g`, `b`).
fn load_norm(w: &Reader<'_>, d: usize, eps: f32) -> Result<Norm, Error> {
    Ok(if w.has("g") {
        Norm::new(Kind::Rms, w.take("g", &[d])?, Some(w.take("b", &[d])?), eps)
    } else {
        Norm::new(Kind::Layer, w.take("weight", &[d])?, Some(w.take("bias", &[d])?), eps)
    })
}

impl MoeMamba {
    fn load(file: &Checkpoint, options: &Options) -> Result<Self, Error> {
        let level = options.level;
        let fields = Fields::new(options.config.as_ref(), file.path.display().to_string());
        let w = Reader::new(file).at(prefix(file).unwrap_or_default());
        let &[vocab, d] = w.shape(EMBEDDING).unwrap_or_default() else {
            return Err(fields.bad(EMBEDDING, "a shape [vocab, d_model]", format!("{:?}", w.shape(EMBEDDING))));
        };
        let (vocab, d) = (vocab.max(1), d.max(1));
        let eps = fields.eps(&["norm_eps"], 1e-5)?;
        let routing = Routing::read(&fields)?;
        let (said, mut order) = Self::order(&fields)?;
        for (name, other, expected) in
            [("router_type", "expert_choice", "token_choice"), ("residual_mode", "post_norm", "pre_norm")]
        {
            if fields.word(&[name])?.is_some_and(|word| word == other) {
                return Err(fields.bad(name, expected, other));
            }
        }

        let embedding = w.take(EMBEDDING, &[vocab, d])?;
        let (mut stack, mut layout, mut blocks, mut mambas) = (Stack::new(d), StateLayout::new(), 0, 0);
        loop {
            let w = w.at(&format!("encoder.blocks.block_{blocks}.block."));
            let norm_of = |name: &str| w.at(&format!("residual_{name}.layer."));
            let here = |name: &String| ["pre_norm.weight", "pre_norm.g"].iter().any(|n| norm_of(name).has(n));
            if !order.iter().any(here) {
                break;
            }
            if blocks == 0 {
                // What the configuration names, and what else the first block has, every block has to have. A parallel block
                // holds the two that are named inside.
                let parallel = here(&"parallel".to_owned());
                order.retain(|name| !parallel && said.contains(name) || here(name));
            }
            for name in &order {
                let w = norm_of(name);
                let norm = load_norm(&w.at("pre_norm."), d, eps)?;
                let places = match name.as_str() {
                    "parallel" => vec!["parallel.layers.0.".to_owned(), "parallel.layers.1.".to_owned()],
                    name => vec![format!("{name}.")],
                };
                let mut layer = Layer::new(norm);
                for place in places {
                    let w = w.at(&place);
                    if w.has("A_log") {
                        let mixer = AnyMixer::Mamba(Mixer::load(&w, level, d)?);
                        let at = mixer.state(&mut layout, &format!("layers.{mambas}"));
                        mambas += 1;
                        layer.mixer = Some((mixer, at));
                    } else {
                        layer.experts = Some(load_experts(&w, level, d, &routing, &fields)?);
                    }
                }
                stack.layers.push(layer);
            }
            blocks += 1;
        }
        let head = w.take("head.weight", &[vocab, d])?;
        fields.agree(&["n_blocks"], blocks)?;
        fields.agree(&["d_model", "dmodel"], d)?;
        if let Some(experts) = stack.experts() {
            fields.agree(&["n_experts"], experts.experts())?;
            fields.agree(&["expert_size"], experts.width())?;
        }
        stack.mixers().try_for_each(|(mixer, _)| mixer.agree(&fields))?;
        w.finish()?;

        let (experts, mixer) = (stack.experts(), stack.mixers().next());
        let info = Info {
            family: FAMILY.name,
            facts: Facts::default(),
            sizes: format!(
                "D {d}, {blocks} blocks, {}, {} experts of {}, top {}, vocabulary {vocab}",
                mixer.map(|m| m.0.sizes()).unwrap_or_default(),
                experts.map_or(0, Experts::experts),
                experts.map_or(0, Experts::width),
                routing.top_k,
            ),
            parameters: file.parameters(),
            input: Signal::Token { vocab },
            output: Signal::Logits { classes: vocab },
            delay: 0,
            hash: file
                .hash(&format!("eps={eps} {:?} {:?} top={} {order:?}", routing.plain, routing.gated, routing.top_k)),
        };
        Ok(Self { info, layout, embedding, stack, head: Linear::pack(level, &head, vocab, d, None) })
    }

    /// Names of a block's layers in the order they run in.
    fn order(fields: &Fields<'_>) -> Result<(Vec<String>, Vec<String>), Error> {
        const KNOWN: [&str; 4] = ["mamba", "vanilla_mamba", "feedforward", "parallel"];
        let mut order: Vec<String> = Vec::new();
        if let Some((name, said)) = fields.get(&["block_modules"]) {
            let words = said.as_array().map(|a| a.iter().map(|v| v.as_str()).collect::<Vec<_>>()).unwrap_or_default();
            for word in &words {
                match word.filter(|w| KNOWN.contains(w)) {
                    Some(word) => order.push(word.to_owned()),
                    None => return Err(fields.bad(&name, KNOWN.join(", "), said)),
                }
            }
        }
        let said = order.clone();
        order.extend(KNOWN.map(str::to_owned));
        // The first of each name counts; what the configuration leaves out comes last, if the file has it at all.
        let mut seen = Vec::new();
        order.retain(|n| {
            let new = !seen.contains(n);
            seen.push(n.clone());
            new
        });
        Ok((said, order))
    }

    fn scratch_len(&self, rows: usize, len: usize) -> usize {
        let (m, d) = (rows * len, self.head.k());
        3 * line(m * d) + self.stack.scratch_len(m).max(head_scratch_len(&self.head, rows, len))
    }

    /// The forward pass; `routed` is told the chosen experts of each layer of experts in turn.
    fn run(&self, cx: &Cx, rows: &mut [Row], len: usize, scratch: &mut Scratch, mut routed: impl FnMut(&[u32])) {
        let (m, d) = (rows.len() * len, self.head.k());
        if m == 0 {
            return;
        }
        let s = &mut scratch.take(self.scratch_len(rows.len(), len));
        let (residual, hidden, normed) = (carve(s, m * d), carve(s, m * d), carve(s, m * d));
        let tokens = rows.iter().flat_map(|r| &r.tokens[..len]);
        embed(&self.embedding, d, tokens, hidden);
        residual.fill(0.0);
        self.stack.forward(cx, [&mut *residual, &mut *hidden, &mut *normed], rows, len, s, &mut routed);
        residual.iter_mut().zip(&*hidden).for_each(|(r, h)| *r += h);
        head(cx, &self.head, residual, rows, len, s);
        rows.iter_mut().for_each(|r| r.state.steps += len as u64);
    }
}

impl Model for MoeMamba {
    fn info(&self) -> &Info {
        &self.info
    }

    fn layout(&self) -> &StateLayout {
        &self.layout
    }

    fn forward(&self, cx: &Cx, rows: &mut [Row], len: usize, scratch: &mut Scratch) {
        self.run(cx, rows, len, scratch, |_| ());
    }

    fn network(&self, weights: &mut Weights) -> Option<Box<dyn Network>> {
        self.on_card(weights)
    }

    fn embed(&self, row: &Row, steps: Range<usize>, out: &mut [f32]) {
        embed(&self.embedding, self.head.k(), &row.tokens[steps], out);
    }

    fn gap(&self, state: &mut State, periods: f64) {
        self.stack.gap(&mut state.data, periods);
    }

    fn upstream_state(&self, state: &State, name: &str) -> Option<(Vec<usize>, Vec<f32>)> {
        self.stack.upstream_state(&state.data, name)
    }
}

/// Golden files: scores, states, the continuation, and every choice of an expert (`__dbg__.block{b}.expert`).
fn verify(g: &mut Golden<'_>) -> Result<(), Error> {
    golden_sequence::verify(g, 2e-5)?;
    let names = g.names_with("__dbg__.block");
    if names.is_empty() {
        return Ok(());
    }
    let model = MoeMamba::load(g.weights(), &g.open_options())?;
    let k = model.stack.experts().map_or(1, Experts::top_k);
    let (batch, len, x) = golden_sequence::input(g, &model, "__input__")?;
    let (_, more, cont) = match g.has("__cont_input__") {
        true => golden_sequence::input(g, &model, "__cont_input__")?,
        false => (batch, 0, vec![]),
    };
    // choices[b][row], input and continuation in one stream
    let total = len + more;
    let mut choices: Vec<Vec<f32>> = Vec::new();
    for row in 0..batch {
        let mut stream = [Row::new(&model, total)];
        let part = |x: &[f32], n: usize| x[row * n..][..n].iter().map(|id| *id as u32).collect::<Vec<_>>();
        stream[0].tokens = [part(&x, len), part(&cont, more)].concat();
        let mut block = 0;
        model.run(g.cx(), &mut stream, total, &mut Scratch::default(), |chosen| {
            choices.resize(choices.len().max(block + 1), vec![]);
            choices[block].extend(chosen.iter().map(|e| *e as f32));
            block += 1;
        });
    }
    for name in names {
        let block = name.strip_prefix("__dbg__.block").and_then(|n| n.strip_suffix(".expert"));
        let Some(got) = block.and_then(|b| b.parse::<usize>().ok()).and_then(|b| choices.get(b)) else { continue };
        let (shape, _) = g.tensor(&name)?;
        // Files with one column hold the best expert of each token.
        let best: Vec<f32> = got.iter().step_by(k).copied().collect();
        let whole = shape.iter().product::<usize>() == got.len();
        g.check(&name, if whole { got } else { &best }, 0.5)?;
    }
    Ok(())
}
