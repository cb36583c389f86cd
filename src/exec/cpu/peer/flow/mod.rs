//! One layer's tokens on their way: out to the ranks of their experts and back, chunk by chunk.
//!
//! In: parcels for the ranks of this rank's own group and for other groups. Out: what came for this rank, and, after its experts have
//! run, the answers to its own tokens. Up to four exchanges per chunk follow each other:
//!
//! ```text
//! cross    tokens to the gateways of other groups
//! deal     from gateways to the ranks of the group; a rank is the gateway of its own tokens there
//! gather   answers to the gateways of the group
//! return   sums of them to the sources in other groups
//! ```
//!
//! Where all ranks are one group only `deal` and `gather` are there. All chunks are begun at once; what an exchange waits for is
//! handed on as soon as it has come, whenever [`Flow::poll`] is called, or when it is waited for.

mod back;

use super::bytes::{self, Broken, Reader};
use super::relay::Relay;
use crate::exec::backend::{Phase, Times};
use crate::exec::clock::timed;
use crate::exec::cpu::nodes::Groups;
use crate::exec::cpu::parcel::{Chunks, Parcel, first_in};
use crate::exec::error::ExecError;
use crate::exec::transport::{Purpose, TransportError, Wire};
use crate::exec::weights::{Dtype, Matrix};

/// The exchanges of a chunk.
#[derive(Debug, Clone, Copy)]
enum Stage {
    Cross,
    Deal,
    Gather,
    Return,
}

/// Shapes that all ranks agree on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shape {
    pub(super) groups: Groups,
    pub(super) chunks: Chunks,
    pub(super) hidden: usize,
    pub(super) dtype: Dtype,
}

/// Parcels for one group or rank each, and which token each row is.
pub(super) type Packed = (Vec<Parcel>, Vec<Vec<u32>>);

/// The tokens of a layer.
#[derive(Debug)]
pub(super) struct Flow<'a> {
    wire: &'a Wire,
    shape: Shape,
    /// This rank's group, and its index there.
    home: (usize, usize),
    /// Number of the first exchange.
    first: u64,
    /// Own tokens, for the ranks of the group and then for every group.
    own: Vec<Parcel>,
    sent: Vec<Vec<u32>>,
    /// Their answers, likewise.
    answers: Vec<Matrix>,
    /// By group; none for the own one.
    relays: Vec<Option<Relay>>,
    inbox: Vec<Parcel>,
    /// Chunks handed on to the group, and chunks whose answers have been summed; what is begun and not ended.
    dealt: usize,
    gathered: usize,
    arrived: usize,
    answered: usize,
}

impl<'a> Flow<'a> {
    /// Sends everything off. `packed` is for the ranks of this rank's group, then for every group (its own empty).
    pub(super) fn begin(
        wire: &'a Wire,
        shape: Shape,
        packed: Packed,
        times: &mut Times,
    ) -> Result<Self, ExecError> {
        let Shape { groups, chunks, hidden, dtype } = shape;
        let (own, sent) = packed;
        let empty = || Matrix::with_capacity(dtype, 0);
        let mut flow = Self {
            wire,
            shape,
            home: groups.place(wire.rank()),
            first: wire.numbers(4 * chunks.count() as u64),
            answers: own.iter().map(|_| empty()).collect(),
            own,
            sent,
            relays: (0..groups.count).map(|_| None).collect(),
            inbox: vec![Parcel::empty(dtype); wire.ranks()],
            dealt: 0,
            gathered: 0,
            arrived: 0,
            answered: 0,
        };
        let (group, index) = flow.home;
        if groups.count == 1 {
            (0..chunks.count()).try_for_each(|_| flow.deal(times))?;
            return Ok(flow);
        }
        for chunk in 0..chunks.count() {
            let to = timed(&mut times[Phase::Dispatch as usize], || {
                let to = |other: usize| {
                    let parcel = &flow.own[groups.size + other];
                    let mut bytes = Vec::new();
                    if !parcel.visits.is_empty() {
                        bytes::put_chunk(parcel, chunk, hidden, &mut bytes);
                    }
                    (groups.rank(other, index), bytes)
                };
                groups.but(group).map(to).collect()
            });
            let from = flow.namesakes();
            wire.begin(Purpose::Dispatch, flow.number(Stage::Cross, chunk), to, from)?;
        }
        Ok(flow)
    }

    fn number(&self, stage: Stage, chunk: usize) -> u64 {
        self.first + (stage as usize * self.shape.chunks.count() + chunk) as u64
    }

    /// The ranks of other groups with this one's index.
    fn namesakes(&self) -> Vec<usize> {
        let (group, index) = self.home;
        self.shape.groups.but(group).map(|other| self.shape.groups.rank(other, index)).collect()
    }

    /// The other ranks of this group.
    fn mates(&self) -> Vec<usize> {
        let ((group, index), groups) = (self.home, self.shape.groups);
        (0..groups.size).filter(|&other| other != index).map(|other| groups.rank(group, other)).collect()
    }

    fn malformed(&self, purpose: Purpose, from: usize) -> impl Fn(Broken) -> TransportError + use<'a> {
        let wire = self.wire;
        move |reason| wire.malformed(purpose, from, reason)
    }

    /// Takes the next chunk from other groups, where there are any, and hands it on inside this one.
    fn deal(&mut self, times: &mut Times) -> Result<(), ExecError> {
        let Shape { groups, chunks, hidden, dtype } = self.shape;
        let (chunk, (group, index)) = (self.dealt, self.home);
        let came = match groups.count {
            1 => Vec::new(),
            _ => self.wire.end(Purpose::Dispatch, self.number(Stage::Cross, chunk))?,
        };
        let time = &mut times[Phase::Dispatch as usize];
        let row_bytes = hidden * dtype.bytes() as usize;
        timed(time, || {
            for (other, message) in groups.but(group).zip(came) {
                let malformed = self.malformed(Purpose::Dispatch, groups.rank(other, index));
                match &mut self.relays[other] {
                    Some(relay) => relay.take(message, row_bytes).map_err(malformed)?,
                    none => {
                        let relay = Relay::open(message, groups, chunks, [hidden, row_bytes], dtype);
                        *none = Some(relay.map_err(malformed)?);
                    }
                }
            }
            Ok::<_, ExecError>(())
        })?;
        let to = timed(time, || self.mates().into_iter().map(|to| (to, self.dealt_to(to, chunk))).collect());
        self.wire.begin(Purpose::Dispatch, self.number(Stage::Deal, chunk), to, self.mates())?;
        self.dealt += 1;
        Ok(())
    }

    /// What a rank of this group gets with a chunk from here: of every source that this rank is the gateway of, by group.
    fn dealt_to(&self, to: usize, chunk: usize) -> Vec<u8> {
        let (group, to) = self.shape.groups.place(to);
        let own = &self.own[to];
        let mut out = Vec::new();
        let any = !own.visits.is_empty() || self.relays.iter().flatten().any(|relay| relay.is_for(to));
        if !any {
            return out;
        }
        for (at, relay) in self.relays.iter().enumerate() {
            match relay {
                Some(relay) => relay.put_chunk(to, chunk, &mut out),
                None if at == group => bytes::put_chunk(own, chunk, self.shape.hidden, &mut out),
                None => {}
            }
        }
        out
    }

    /// Waits for the next chunk; then its rows are in [`Flow::inbox`], and with the first one all visits.
    pub(super) fn arrive(&mut self, times: &mut Times) -> Result<(), ExecError> {
        let (chunk, (group, index)) = (self.arrived, self.home);
        while self.dealt <= chunk {
            self.deal(times)?;
        }
        let came = self.wire.end(Purpose::Dispatch, self.number(Stage::Deal, chunk))?;
        let begun = self.mates();
        timed(&mut times[Phase::Dispatch as usize], || {
            for (from, message) in begun.into_iter().zip(came) {
                self.read(from, chunk, &message).map_err(self.malformed(Purpose::Dispatch, from))?;
            }
            // What this rank is the gateway of and host too, and its own tokens, which are not packed.
            let me = self.wire.rank();
            if self.shape.groups.count > 1 {
                let mut here = Vec::new();
                let groups = self.shape.groups;
                for other in groups.but(group) {
                    if let Some(relay) = &self.relays[other] {
                        here.clear();
                        relay.put_chunk(index, chunk, &mut here);
                        self.wire.stays(Purpose::Dispatch, here.len() as u64);
                        let source = groups.rank(other, index);
                        self.read_from(source, chunk, &mut Reader(&here))
                            .map_err(self.malformed(Purpose::Dispatch, source))?;
                    }
                }
            }
            if chunk == 0 {
                let own = &mut self.own[index];
                self.wire.stays(Purpose::Dispatch, bytes::length(own));
                let kept = Parcel { spans: own.spans.clone(), ..Parcel::empty(self.shape.dtype) };
                self.inbox[me] = std::mem::replace(own, kept);
            }
            Ok::<_, TransportError>(())
        })?;
        self.arrived += 1;
        Ok(())
    }

    /// Reads what a gateway of this group handed on with a chunk.
    fn read(&mut self, gateway: usize, chunk: usize, message: &[u8]) -> Result<(), Broken> {
        // Where nothing is announced, nothing comes later.
        if message.is_empty() && chunk == 0 {
            return Ok(());
        }
        let (groups, mut reader) = (self.shape.groups, Reader(message));
        let (_, index) = groups.place(gateway);
        for group in 0..groups.count {
            self.read_from(groups.rank(group, index), chunk, &mut reader)?;
        }
        reader.end()
    }

    fn read_from(&mut self, source: usize, chunk: usize, reader: &mut Reader<'_>) -> Result<(), Broken> {
        let Shape { chunks, hidden, dtype, .. } = self.shape;
        let parcel = &mut self.inbox[source];
        if chunk == 0 {
            let (visits, spans) = bytes::announced(reader, chunks.slots(), chunks)?;
            let rows = Matrix::with_capacity(dtype, spans.len().min(reader.left()) * hidden);
            *parcel = Parcel { rows, visits, spans };
        }
        let rows = first_in(&parcel.spans, chunk).len();
        bytes::take_into(reader, rows * hidden, &mut parcel.rows)
    }

    /// What has come for this rank, by source, `[R]`.
    pub(super) fn inbox(&self) -> &[Parcel] {
        &self.inbox
    }

    /// Hands on what has come, without waiting.
    pub(super) fn poll(&mut self, times: &mut Times) -> Result<(), ExecError> {
        let chunks = self.shape.chunks.count();
        while self.dealt < chunks && self.wire.is_through(self.number(Stage::Cross, self.dealt))? {
            self.deal(times)?;
        }
        for chunk in self.arrived..self.dealt {
            self.wire.is_through(self.number(Stage::Deal, chunk))?;
        }
        while self.gathered < self.answered
            && self.wire.is_through(self.number(Stage::Gather, self.gathered))?
        {
            self.gather(times)?;
        }
        Ok(())
    }
}
