//! Mixtures of experts (arXiv:1701.06538): which experts a token goes to ([`route_by`]), and what they make of it
//! ([`Experts`]). On a GPU (`gpu`) activations are bf16 where the text below says f32.
//!
//! A token's outputs are added up in the order of its experts' numbers, so they do not depend, to the bit, on who else
//! is in the batch. On a GPU they may: where more than 8 tokens of a step go to an expert, its scaled weights are rounded
//! to bf16 before they are multiplied, and else they are not. This module must never know how experts are stored or what a router is made of.

#[cfg(feature = "cuda")]
mod gpu;
mod swiglu;
#[cfg(test)]
mod tests;

use candle_core::{Device, Result, Tensor, bail};

use crate::activation::silu_mul;
use crate::add::add;
use crate::linear::Linear;
use swiglu::clamped_swiglu;

/// What the weights of a token's experts are made of, and what they multiply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weighting {
    /// The softmax of the chosen experts' scores: the weights add up to 1. (A softmax over all experts gives the same,
    /// once the chosen ones' shares are divided by their sum.)
    AmongChosen,
    /// The softmax of all experts' scores: the chosen ones' shares as they are.
    AmongAll,
    /// Each chosen score's logistic function, which multiplies what the expert is given, not what it makes of it
    /// (Llama 4).
    SigmoidOfInput,
}

/// The experts of each token of a batch, and their weights.
#[derive(Clone, Debug)]
pub struct Routes {
    /// `[tokens][top]`; a token's are in the order of their numbers.
    choices: Vec<Choice>,
    top: usize,
    /// Weights multiply the experts' inputs, else their outputs.
    weighs_inputs: bool,
    /// All of it, where the tokens are on a GPU: the host does not know.
    #[cfg(feature = "cuda")]
    on_gpu: Option<gpu::GpuRoutes>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Choice {
    expert: usize,
    weight: f32,
}

/// Chooses the `top` experts with the highest scores for each token; of equal ones, the first. `scores`: the router's
/// output, f32 `[tokens, experts]`.
///
/// # Errors
/// Another rank or dtype, no expert to be chosen, or more than there are.
pub fn route(scores: &Tensor, top: usize, weighting: Weighting) -> Result<Routes> {
    let (_, experts) = scores.dims2()?;
    check_top(top, experts)?;
    let scores = scores.flatten_all()?.to_vec1::<f32>()?;
    let choices = scores.chunks_exact(experts).flat_map(|scores| choose(scores, top, weighting)).collect();
    Ok(Routes {
        choices,
        top,
        weighs_inputs: weighting == Weighting::SigmoidOfInput,
        #[cfg(feature = "cuda")]
        on_gpu: None,
    })
}

/// As [`route`], by the scores that `router` gives the tokens `x`, f32 `[tokens, hidden]`. On a GPU, `num_tokens`, u32
/// `[1]`, may say how many of them are real: those after them are padding, which goes to no expert.
///
/// # Errors
/// As [`route`], or tokens that do not fit the router.
pub fn route_by(
    router: &Linear,
    x: &Tensor,
    num_tokens: Option<&Tensor>,
    top: usize,
    weighting: Weighting,
) -> Result<Routes> {
    #[cfg(feature = "cuda")]
    if x.device().is_cuda() {
        check_top(top, router.out_features())?;
        let on_gpu = Some(gpu::route(router, x, num_tokens, top, weighting)?);
        return Ok(Routes { choices: Vec::new(), top, weighs_inputs: false, on_gpu });
    }
    debug_assert!(num_tokens.is_none(), "only a GPU's steps are padded");
    route(&router.forward(x)?, top, weighting)
}

fn check_top(top: usize, experts: usize) -> Result<()> {
    if top == 0 || top > experts {
        bail!("route: {top} experts a token cannot be chosen of {experts}");
    }
    Ok(())
}

fn choose(scores: &[f32], top: usize, weighting: Weighting) -> Vec<Choice> {
    let mut experts: Vec<usize> = (0..scores.len()).collect();
    experts.select_nth_unstable_by(top - 1, |&a, &b| scores[b].total_cmp(&scores[a]).then(a.cmp(&b)));
    experts.truncate(top);
    experts.sort_unstable();
    let largest = experts.iter().fold(f32::NEG_INFINITY, |largest, &expert| largest.max(scores[expert]));
    let share = |expert: usize| (scores[expert] - largest).exp();
    let total: f32 = match weighting {
        Weighting::AmongChosen => experts.iter().map(|&expert| share(expert)).sum(),
        Weighting::AmongAll => (0..scores.len()).map(share).sum(),
        Weighting::SigmoidOfInput => 0.0,
    };
    let weight = |expert: usize| match weighting {
        Weighting::SigmoidOfInput => 1.0 / (1.0 + (-scores[expert]).exp()),
        Weighting::AmongChosen | Weighting::AmongAll => share(expert) / total,
    };
    experts.into_iter().map(|expert| Choice { expert, weight: weight(expert) }).collect()
}

impl Routes {
    /// For each of so many experts, its tokens, counted from the batch's first, and their weights. Of tokens on a CPU.
    pub fn by_expert(&self, experts: usize) -> Vec<Vec<(usize, f32)>> {
        let mut tokens = vec![Vec::new(); experts];
        for (index, choice) in self.choices.iter().enumerate() {
            tokens[choice.expert].push((index / self.top, choice.weight));
        }
        tokens
    }
}

/// What an expert does between its two products.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Activation {
    /// [`silu_mul`].
    SiluMul,
    /// `(up + 1) * gate * sigmoid(alpha * gate)`, after `gate` was capped at `limit` and `up` clamped to
    /// `-limit..=limit` (arXiv:2508.10925).
    ClampedSwiglu { alpha: f32, limit: f32 },
}

impl Activation {
    /// `gate_up`: f32 `[tokens, 2 * i]`, the gate's columns and then up's. Returns f32 `[tokens, i]`.
    fn apply(self, gate_up: &Tensor) -> Result<Tensor> {
        match self {
            Activation::SiluMul => silu_mul(gate_up),
            Activation::ClampedSwiglu { alpha, limit } => clamped_swiglu(gate_up, alpha, limit),
        }
    }
}

/// One gated feed-forward layer of many: `down(act(gate(x), up(x)))`.
#[derive(Clone, Debug)]
pub struct Expert {
    /// Rows: all of the gate's, then all of up's.
    pub gate_up: Linear,
    pub down: Linear,
}

/// A layer's experts, all of one shape.
#[derive(Clone, Debug)]
pub struct Experts {
    /// None where they are on a GPU.
    experts: Vec<Expert>,
    activation: Activation,
    #[cfg(feature = "cuda")]
    on_gpu: Option<std::sync::Arc<gpu::GpuExperts>>,
}

impl Experts {
    /// # Errors
    /// There is no expert, or one's matrices do not fit each other or those of the others; or on a GPU, sizes or formats
    /// that no kernel takes.
    pub fn new(experts: Vec<Expert>, activation: Activation) -> Result<Self> {
        let Some(first) = experts.first() else { bail!("experts: there are none") };
        let (hidden, width) = (first.gate_up.in_features(), first.gate_up.out_features());
        let fits = |Expert { gate_up, down }: &Expert| {
            (gate_up.in_features(), gate_up.out_features()) == (hidden, width)
                && (down.in_features() * 2, down.out_features()) == (width, hidden)
        };
        if let Some(index) = experts.iter().position(|expert| !fits(expert)) {
            bail!("experts: number {index} is not {hidden} to {width} / 2 to {hidden} features");
        }
        #[cfg(feature = "cuda")]
        if first.gate_up.on_gpu().is_some() {
            let (gate_up, down) = experts.into_iter().map(|expert| (expert.gate_up, expert.down)).unzip();
            let on_gpu = Some(gpu::GpuExperts::new(gate_up, down)?.into());
            return Ok(Self { experts: Vec::new(), activation, on_gpu });
        }
        Ok(Self {
            experts,
            activation,
            #[cfg(feature = "cuda")]
            on_gpu: None,
        })
    }

    /// The sum of what each token's experts make of it, each weighed as `routes` says, and of `beside`, where there is such.
    /// `x` and `beside`: f32 `[tokens, hidden]`, contiguous; the result is the same.
    ///
    /// # Errors
    /// Another shape or dtype, or routes of other tokens or to experts that there are not.
    pub fn forward(&self, x: &Tensor, routes: &Routes, beside: Option<&Tensor>) -> Result<Tensor> {
        #[cfg(feature = "cuda")]
        if let (Some(experts), Some(routes)) = (&self.on_gpu, &routes.on_gpu) {
            return experts.forward(x, routes, self.activation, beside);
        }
        let routed = self.forward_on_cpu(x, routes)?;
        match beside {
            Some(beside) => add(beside, &routed),
            None => Ok(routed),
        }
    }

    fn forward_on_cpu(&self, x: &Tensor, routes: &Routes) -> Result<Tensor> {
        let (tokens, hidden) = x.dims2()?;
        if routes.choices.len() != tokens * routes.top {
            bail!("experts: {tokens} tokens were given routes of {}", routes.choices.len() / routes.top);
        }
        if let Some(choice) = routes.choices.iter().find(|choice| choice.expert >= self.experts.len()) {
            bail!("experts: a token is to go to number {} of {}", choice.expert, self.experts.len());
        }
        let mut out = vec![0.0; tokens * hidden];
        for (expert, chosen) in self.experts.iter().zip(routes.by_expert(self.experts.len())) {
            if !chosen.is_empty() {
                self.add(expert, x, &chosen, routes.weighs_inputs, &mut out)?;
            }
        }
        Tensor::from_vec(out, (tokens, hidden), &Device::Cpu)
    }

    /// Adds one expert's part for the tokens that chose it.
    fn add(
        &self,
        expert: &Expert,
        x: &Tensor,
        chosen: &[(usize, f32)],
        weighs_inputs: bool,
        out: &mut [f32],
    ) -> Result<()> {
        let (rows, mut weights): (Vec<u32>, Vec<f32>) = chosen.iter().map(|&(t, weight)| (t as u32, weight)).unzip();
        let mut x = x.index_select(&Tensor::new(rows, x.device())?, 0)?;
        if weighs_inputs {
            x = x.broadcast_mul(&Tensor::new(&weights[..], x.device())?.unsqueeze(1)?)?;
            weights.fill(1.0);
        }
        let inner = self.activation.apply(&expert.gate_up.forward(&x)?)?;
        let y = expert.down.forward(&inner)?.flatten_all()?.to_vec1::<f32>()?;
        let hidden = y.len() / chosen.len();
        for ((&(token, _), weight), y) in chosen.iter().zip(weights).zip(y.chunks_exact(hidden)) {
            for (out, y) in out[token * hidden..][..hidden].iter_mut().zip(y) {
                *out += weight * y;
            }
        }
        Ok(())
    }
}
