//! The requests from which a step's tokens come.
//!
//! Input is a [`SynthSpec`] and a random stream. Output is a list of [`RequestPortion`]s per step: the number
//! of tokens of each request in flight, and the changes of the request. All layers see the same portions.

use super::SynthSpec;
use crate::Batching;
use evenkeel::rng::SeededRng;

/// The tokens that a step takes from one request.
#[derive(Debug, Clone)]
pub(super) struct RequestPortion {
    /// The index of the request among those in flight.
    pub(super) place: usize,
    pub(super) tokens: usize,
    /// The change since its last portion.
    pub(super) change: Option<TopicChange>,
}

/// A new request, or a new topic of the same request.
#[derive(Debug, Clone)]
pub(super) struct TopicChange {
    pub(super) kind: usize,
    /// The latent vector, `[rank]`.
    pub(super) latent: Vec<f64>,
    /// The share of a layer's own draws that stays; 0 for a new request.
    pub(super) persistence: f64,
}

struct SynthRequest {
    kind: usize,
    latent: Vec<f64>,
    left: usize,
    until_topic: usize,
}

/// The requests in flight.
pub(super) struct RequestStream<'a> {
    spec: &'a SynthSpec,
    rng: SeededRng,
    places: Vec<Option<SynthRequest>>,
    started: usize,
    portions: Vec<RequestPortion>,
    /// The expected number of requests in the whole trace. It determines the length of each kind's single
    /// run.
    expected: f64,
}

impl<'a> RequestStream<'a> {
    pub(super) fn new(spec: &'a SynthSpec, rng: SeededRng) -> Self {
        let (places, batch) = match spec.batching {
            Batching::Prefill { tokens } => (1, tokens),
            Batching::Decode { in_flight } => (in_flight, in_flight),
        };
        let expected = (batch as f64 * spec.steps as f64 / spec.request_tokens).max(1.0);
        let places = (0..places).map(|_| None).collect();
        Self { spec, rng, places, started: 0, portions: Vec::new(), expected }
    }

    /// Returns the portions of the next step.
    pub(super) fn next_step(&mut self) -> &[RequestPortion] {
        self.portions.clear();
        match self.spec.batching {
            Batching::Prefill { tokens } => self.take_tokens(0, tokens),
            Batching::Decode { in_flight } => (0..in_flight).for_each(|place| self.take_tokens(place, 1)),
        }
        &self.portions
    }

    fn take_tokens(&mut self, place: usize, mut tokens: usize) {
        while tokens > 0 {
            let (mut request, news) = match self.places[place].take() {
                None => self.start_request(),
                Some(request) if request.left == 0 => self.start_request(),
                Some(request) if request.until_topic == 0 => self.change_topic(request),
                Some(request) => (request, None),
            };
            let count = tokens.min(request.left).min(request.until_topic);
            request.left -= count;
            request.until_topic -= count;
            tokens -= count;
            self.places[place] = Some(request);
            self.portions.push(RequestPortion { place, tokens: count, change: news });
        }
    }

    fn start_request(&mut self) -> (SynthRequest, Option<TopicChange>) {
        let spec = self.spec;
        let kind = match spec.kinds_run {
            0 => ((self.started as f64 / self.expected) * spec.kinds as f64) as usize % spec.kinds,
            1 => self.rng.draw_below(spec.kinds as u64) as usize,
            run => self.started / run % spec.kinds,
        };
        let mut latent = vec![0.0; spec.rank];
        self.rng.fill_normal(&mut latent);
        // The length is log-normal with the specified mean.
        let spread = spec.request_spread;
        let length = spec.request_tokens * (spread * self.rng.draw_normal() - spread * spread / 2.0).exp();
        let mut left = (length.round() as usize).max(1);
        if self.started < self.places.len() && self.places.len() > 1 {
            // Requests that are in flight at the start are at a random position.
            left = 1 + self.rng.draw_below(left as u64) as usize;
        }
        self.started += 1;
        let news = TopicChange { kind, latent: latent.clone(), persistence: 0.0 };
        (SynthRequest { kind, latent, left, until_topic: self.topic_length() }, Some(news))
    }

    fn change_topic(&mut self, mut request: SynthRequest) -> (SynthRequest, Option<TopicChange>) {
        let keep = self.spec.topic_persistence;
        let renew = (1.0 - keep * keep).sqrt();
        let mut fresh = vec![0.0; request.latent.len()];
        self.rng.fill_normal(&mut fresh);
        for (old, new) in request.latent.iter_mut().zip(&fresh) {
            *old = keep * *old + renew * new;
        }
        request.until_topic = self.topic_length();
        let news = TopicChange { kind: request.kind, latent: request.latent.clone(), persistence: keep };
        (request, Some(news))
    }

    fn topic_length(&self) -> usize {
        if self.spec.topic_tokens == 0 { usize::MAX } else { self.spec.topic_tokens }
    }
}
