//! Which requests a step's tokens come from.
//!
//! In: a [`SynthSpec`] and a random stream. Out: per step a list of [`Portion`]s: so many
//! tokens of the request in such a place, and what is new about it. All layers see the same.

use super::SynthSpec;
use crate::trace::Batching;
use crate::trace::dice::Dice;

/// Tokens that a step takes from one request.
#[derive(Debug, Clone)]
pub(super) struct Portion {
    /// Where the request sits among those in flight.
    pub(super) place: usize,
    pub(super) tokens: usize,
    /// What changed since its last portion.
    pub(super) news: Option<News>,
}

/// A new request, or a new topic of the same.
#[derive(Debug, Clone)]
pub(super) struct News {
    pub(super) kind: usize,
    /// The latent vector, `[rank]`.
    pub(super) latent: Vec<f64>,
    /// How much of a layer's own draws stays; 0 for a new request.
    pub(super) keep: f64,
}

struct Request {
    kind: usize,
    latent: Vec<f64>,
    left: usize,
    until_topic: usize,
}

/// The requests in flight.
pub(super) struct Requests<'a> {
    spec: &'a SynthSpec,
    dice: Dice,
    places: Vec<Option<Request>>,
    started: usize,
    portions: Vec<Portion>,
    /// Requests expected over the whole trace, for kinds in one long run each.
    expected: f64,
}

impl<'a> Requests<'a> {
    pub(super) fn new(spec: &'a SynthSpec, dice: Dice) -> Self {
        let (places, batch) = match spec.batching {
            Batching::Prefill { tokens } => (1, tokens),
            Batching::Decode { in_flight } => (in_flight, in_flight),
        };
        let expected = (batch as f64 * spec.steps as f64 / spec.request_tokens).max(1.0);
        let places = (0..places).map(|_| None).collect();
        Self { spec, dice, places, started: 0, portions: Vec::new(), expected }
    }

    /// The next step's portions.
    pub(super) fn step(&mut self) -> &[Portion] {
        self.portions.clear();
        match self.spec.batching {
            Batching::Prefill { tokens } => self.take(0, tokens),
            Batching::Decode { in_flight } => (0..in_flight).for_each(|place| self.take(place, 1)),
        }
        &self.portions
    }

    fn take(&mut self, place: usize, mut tokens: usize) {
        while tokens > 0 {
            let (mut request, news) = match self.places[place].take() {
                None => self.start(),
                Some(request) if request.left == 0 => self.start(),
                Some(request) if request.until_topic == 0 => self.turn(request),
                Some(request) => (request, None),
            };
            let count = tokens.min(request.left).min(request.until_topic);
            request.left -= count;
            request.until_topic -= count;
            tokens -= count;
            self.places[place] = Some(request);
            self.portions.push(Portion { place, tokens: count, news });
        }
    }

    fn start(&mut self) -> (Request, Option<News>) {
        let spec = self.spec;
        let kind = match spec.kinds_run {
            0 => ((self.started as f64 / self.expected) * spec.kinds as f64) as usize % spec.kinds,
            1 => self.dice.below(spec.kinds as u64) as usize,
            run => self.started / run % spec.kinds,
        };
        let mut latent = vec![0.0; spec.rank];
        self.dice.fill_normal(&mut latent);
        // Log-normal with the mean asked for.
        let spread = spec.request_spread;
        let length = spec.request_tokens * (spread * self.dice.normals().0 - spread * spread / 2.0).exp();
        let mut left = (length.round() as usize).max(1);
        if self.started < self.places.len() && self.places.len() > 1 {
            // Those in flight at the start are somewhere in the middle.
            left = 1 + self.dice.below(left as u64) as usize;
        }
        self.started += 1;
        let news = News { kind, latent: latent.clone(), keep: 0.0 };
        (Request { kind, latent, left, until_topic: self.topic() }, Some(news))
    }

    fn turn(&mut self, mut request: Request) -> (Request, Option<News>) {
        let keep = self.spec.topic_persistence;
        let renew = (1.0 - keep * keep).sqrt();
        let mut fresh = vec![0.0; request.latent.len()];
        self.dice.fill_normal(&mut fresh);
        for (old, new) in request.latent.iter_mut().zip(&fresh) {
            *old = keep * *old + renew * new;
        }
        request.until_topic = self.topic();
        let news = News { kind: request.kind, latent: request.latent.clone(), keep };
        (request, Some(news))
    }

    fn topic(&self) -> usize {
        if self.spec.topic_tokens == 0 { usize::MAX } else { self.spec.topic_tokens }
    }
}
