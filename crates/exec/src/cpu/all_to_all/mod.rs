//! Dispatch and combine of one layer, chunk by chunk.
//!
//! Input: send buffers for the ranks of this rank's own group and for other groups. Output: the tokens
//! received by this rank and, after its experts have run, the answers to its own tokens. Up to four exchanges
//! per chunk follow each other:
//!
//! ```text
//! cross    tokens to the gateways of other groups
//! deal     from gateways to the ranks of the group; a rank is the gateway of its own tokens there
//! gather   answers to the gateways of the group
//! return   sums of them to the sources in other groups
//! ```
//!
//! If all ranks form one group, only `deal` and `gather` exist. All chunks begin at once. Received data is
//! forwarded as soon as [`AllToAll::poll`] sees it, or when it is waited for. If several ranks are in this
//! process, each of them must have begun a phase before one of them waits for it.

mod combine;

pub(super) use combine::append_answers;

use super::codec::{self, ByteReader, DecodeError};
use super::gateway::Gateway;
use super::mailbox::{Mailbox, Message};
use super::node_groups::NodeGroups;
use super::send_buffer::{SendBuffer, SlotChunks, rows_sent_in};
use crate::backend::{LayerStage, StageTimes};
use crate::clock::time_work;
use crate::comm::{CommError, Purpose};
use crate::error::ExecError;
use crate::weights::{Dtype, Matrix};

/// The exchanges of a chunk.
#[derive(Debug, Clone, Copy)]
enum ExchangeStage {
    Cross,
    Deal,
    Gather,
    Return,
}

/// Shapes on which all ranks agree.
#[derive(Debug, Clone, Copy)]
pub(super) struct ExchangeShape {
    pub(super) groups: NodeGroups,
    pub(super) chunks: SlotChunks,
    pub(super) hidden: usize,
    pub(super) dtype: Dtype,
}

impl ExchangeShape {
    /// Returns the number of exchanges of a layer.
    pub(super) fn exchange_count(&self) -> u64 {
        4 * self.chunks.count() as u64
    }
}

/// Send buffers for one group or rank each, and the token of each row.
pub(super) type PackedTokens = (Vec<SendBuffer>, Vec<Vec<u32>>);

/// The tokens of one rank in transit, in one layer.
#[derive(Debug)]
pub(super) struct AllToAll<'a> {
    mail: &'a Mailbox<'a>,
    rank: usize,
    shape: ExchangeShape,
    /// This rank's group, and its index there.
    home: (usize, usize),
    /// Number of the first exchange.
    first: u64,
    /// Send buffers of own tokens: for the ranks of the group, then for every group.
    own: Vec<SendBuffer>,
    sent: Vec<Vec<u32>>,
    /// Answers to these send buffers, in the same order.
    answers: Vec<Matrix>,
    /// Forwarded tokens by source group; `None` for this rank's own group.
    relays: Vec<Option<Gateway>>,
    inbox: Vec<SendBuffer>,
    /// Counts of chunks: forwarded within the group, with summed answers, received, and answered.
    forwarded_chunks: usize,
    summed_chunks: usize,
    received_chunks: usize,
    answered_chunks: usize,
}

impl<'a> AllToAll<'a> {
    /// Prepares the exchanges of a layer, numbered from `first` on.
    pub(super) fn new(mail: &'a Mailbox<'a>, (rank, first): (usize, u64), shape: ExchangeShape) -> Self {
        Self {
            mail,
            rank,
            shape,
            home: shape.groups.position_of(rank),
            first,
            own: Vec::new(),
            sent: Vec::new(),
            answers: Vec::new(),
            relays: (0..shape.groups.count).map(|_| None).collect(),
            inbox: vec![SendBuffer::empty(shape.dtype); mail.group.ranks()],
            forwarded_chunks: 0,
            summed_chunks: 0,
            received_chunks: 0,
            answered_chunks: 0,
        }
    }

    /// Begins the dispatch of all chunks. `packed` contains the send buffers for the ranks of this rank's
    /// group, then for every group (its own is empty).
    pub(super) fn start_dispatch(
        &mut self,
        (own, sent): PackedTokens,
        times: &mut StageTimes,
    ) -> Result<(), ExecError> {
        let ExchangeShape { groups, chunks, hidden, dtype } = self.shape;
        self.answers = own.iter().map(|_| Matrix::with_capacity(dtype, 0)).collect();
        (self.own, self.sent) = (own, sent);
        let (group, index) = self.home;
        if groups.count == 1 {
            return self.forward_until(chunks.count(), times);
        }
        for chunk in 0..chunks.count() {
            let to = time_work(&mut times[LayerStage::Dispatch as usize], || {
                let to = |other: usize| {
                    let parcel = &self.own[groups.size + other];
                    let mut bytes = Vec::new();
                    if !parcel.visits.is_empty() {
                        codec::encode_chunk(parcel, chunk, hidden, &mut bytes);
                    }
                    (groups.rank_at(other, index), Message::Encoded(bytes))
                };
                groups.other_groups(group).map(to).collect()
            });
            let number = self.exchange_id(ExchangeStage::Cross, chunk);
            self.mail.start_exchange(Purpose::Dispatch, number, self.rank, to, &self.gateway_peers())?;
        }
        Ok(())
    }

    fn exchange_id(&self, stage: ExchangeStage, chunk: usize) -> u64 {
        self.first + (stage as usize * self.shape.chunks.count() + chunk) as u64
    }

    /// Returns the ranks of other groups with the same index as this one.
    fn gateway_peers(&self) -> Vec<usize> {
        let (group, index) = self.home;
        self.shape.groups.other_groups(group).map(|other| self.shape.groups.rank_at(other, index)).collect()
    }

    /// Returns the ranks of this group, this one included.
    fn group_ranks(&self) -> Vec<usize> {
        let ((group, _), groups) = (self.home, self.shape.groups);
        (0..groups.size).map(|index| groups.rank_at(group, index)).collect()
    }

    fn malformed_message(
        &self,
        purpose: Purpose,
        from: usize,
    ) -> impl Fn(DecodeError) -> CommError + use<'a> {
        let group = self.mail.group;
        move |reason| group.malformed_message(purpose, from, reason)
    }

    /// Forwards tokens within the group until `chunks` chunks have been forwarded.
    pub(super) fn forward_until(&mut self, chunks: usize, times: &mut StageTimes) -> Result<(), ExecError> {
        while self.forwarded_chunks < chunks {
            self.forward_chunk(times)?;
        }
        Ok(())
    }

    /// Receives the next chunk from other groups, if any, and forwards it within this one.
    fn forward_chunk(&mut self, times: &mut StageTimes) -> Result<(), ExecError> {
        let ExchangeShape { groups, chunks, hidden, dtype } = self.shape;
        let (chunk, (group, index), peers) = (self.forwarded_chunks, self.home, self.group_ranks());
        let cross = self.exchange_id(ExchangeStage::Cross, chunk);
        let came = match groups.count {
            1 => Vec::new(),
            _ => self.mail.wait(Purpose::Dispatch, cross, self.rank, &self.gateway_peers())?,
        };
        let time = &mut times[LayerStage::Dispatch as usize];
        let row_bytes = hidden * dtype.bytes() as usize;
        let to = time_work(time, || {
            for (other, message) in groups.other_groups(group).zip(came) {
                let malformed = self.malformed_message(Purpose::Dispatch, groups.rank_at(other, index));
                let message = message.into_bytes().map_err(&malformed)?;
                match &mut self.relays[other] {
                    Some(relay) => relay.add_chunk(message, row_bytes).map_err(malformed)?,
                    none => {
                        let relay =
                            Gateway::from_first_chunk(message, groups, chunks, [hidden, row_bytes], dtype);
                        *none = Some(relay.map_err(malformed)?);
                    }
                }
            }
            let part = |&to: &usize| (to, self.part_for_rank(to, chunk));
            Ok::<_, ExecError>(peers.iter().map(part).collect())
        })?;
        let deal = self.exchange_id(ExchangeStage::Deal, chunk);
        self.mail.start_exchange(Purpose::Dispatch, deal, self.rank, to, &peers)?;
        self.forwarded_chunks += 1;
        Ok(())
    }

    /// Returns the part of a chunk for a rank of this group: own tokens, and those of every source whose
    /// gateway this rank is, by group. It is empty if the rank gets no tokens in any chunk.
    fn part_for_rank(&mut self, to: usize, chunk: usize) -> Message {
        let (group, index) = self.shape.groups.position_of(to);
        let own = &self.own[index];
        // A send buffer that has been moved has spans, but no assignments.
        let has_tokens =
            !own.spans.is_empty() || self.relays.iter().flatten().any(|relay| relay.has_tokens_for(index));
        if !has_tokens {
            return Message::Encoded(Vec::new());
        }
        if !self.mail.group.is_local(to) {
            return Message::Encoded(self.encode_part(group, index, chunk));
        }
        let forwarded = self.encode_forwarded(index, chunk);
        let own = (chunk == 0).then(|| {
            let own = &mut self.own[index];
            let kept = SendBuffer { spans: own.spans.clone(), ..SendBuffer::empty(self.shape.dtype) };
            std::mem::replace(own, kept)
        });
        Message::Tokens { own, forwarded }
    }

    /// Encodes the part of a chunk for a rank of another process.
    fn encode_part(&self, group: usize, index: usize, chunk: usize) -> Vec<u8> {
        let mut out = Vec::new();
        for (at, relay) in self.relays.iter().enumerate() {
            match relay {
                Some(relay) => relay.encode_chunk(index, chunk, &mut out),
                None if at == group => {
                    codec::encode_chunk(&self.own[index], chunk, self.shape.hidden, &mut out);
                }
                None => {}
            }
        }
        out
    }

    /// Encodes the tokens of other groups for the rank with an index in this group.
    fn encode_forwarded(&self, index: usize, chunk: usize) -> Vec<u8> {
        let mut out = Vec::new();
        self.relays.iter().flatten().for_each(|relay| relay.encode_chunk(index, chunk, &mut out));
        out
    }

    /// Waits for the next chunk. Then its rows are in [`AllToAll::inbox`], and with the first chunk also all
    /// assignments.
    pub(super) fn wait_chunk(&mut self, times: &mut StageTimes) -> Result<(), ExecError> {
        let (chunk, peers) = (self.received_chunks, self.group_ranks());
        self.forward_until(chunk + 1, times)?;
        let deal = self.exchange_id(ExchangeStage::Deal, chunk);
        let came = self.mail.wait(Purpose::Dispatch, deal, self.rank, &peers)?;
        time_work(&mut times[LayerStage::Dispatch as usize], || {
            for (from, message) in peers.into_iter().zip(came) {
                self.accept_chunk(from, chunk, message)
                    .map_err(self.malformed_message(Purpose::Dispatch, from))?;
            }
            Ok::<_, CommError>(())
        })?;
        self.received_chunks += 1;
        Ok(())
    }

    /// Accepts a chunk that a gateway of this group has forwarded, with its own tokens.
    fn accept_chunk(&mut self, gateway: usize, chunk: usize, message: Message) -> Result<(), DecodeError> {
        let (own, forwarded) = match message {
            Message::Tokens { own, forwarded } => (own, forwarded),
            message => return self.decode_chunk(gateway, chunk, &message.into_bytes()?),
        };
        if let Some(own) = own {
            self.inbox[gateway] = own;
        }
        let (groups, mut reader) = (self.shape.groups, ByteReader(&forwarded));
        let (group, index) = groups.position_of(gateway);
        for other in groups.other_groups(group) {
            self.decode_source(groups.rank_at(other, index), chunk, &mut reader)?;
        }
        reader.expect_end()
    }

    /// Reads a chunk that a gateway of this group has forwarded.
    fn decode_chunk(&mut self, gateway: usize, chunk: usize, message: &[u8]) -> Result<(), DecodeError> {
        // A gateway without an announcement sends nothing later.
        if message.is_empty() && chunk == 0 {
            return Ok(());
        }
        let (groups, mut reader) = (self.shape.groups, ByteReader(message));
        let (_, index) = groups.position_of(gateway);
        for group in 0..groups.count {
            self.decode_source(groups.rank_at(group, index), chunk, &mut reader)?;
        }
        reader.expect_end()
    }

    fn decode_source(
        &mut self,
        source: usize,
        chunk: usize,
        reader: &mut ByteReader<'_>,
    ) -> Result<(), DecodeError> {
        let ExchangeShape { chunks, hidden, dtype, .. } = self.shape;
        let parcel = &mut self.inbox[source];
        if chunk == 0 {
            let (visits, spans) = codec::decode_header(reader, chunks.slots(), chunks)?;
            let rows = Matrix::with_capacity(dtype, spans.len().min(reader.remaining_bytes()) * hidden);
            *parcel = SendBuffer { rows, visits, spans };
        }
        let rows = rows_sent_in(&parcel.spans, chunk).len();
        codec::decode_into(reader, rows * hidden, &mut parcel.rows)
    }

    /// Returns the tokens received by this rank, by source, `[R]`.
    pub(super) fn inbox(&self) -> &[SendBuffer] {
        &self.inbox
    }

    /// Frees the received tokens.
    pub(super) fn discard_inbox(&mut self) {
        self.inbox = Vec::new();
    }

    /// Returns whether all ranks are in this process, so that nothing is under way.
    pub(super) fn is_local(&self) -> bool {
        self.mail.group.is_complete()
    }

    /// Forwards received data without waiting.
    pub(super) fn poll(&mut self, times: &mut StageTimes) -> Result<(), ExecError> {
        if self.is_local() {
            return Ok(());
        }
        let (chunks, peers) = (self.shape.chunks.count(), self.group_ranks());
        while self.forwarded_chunks < chunks {
            let cross = self.exchange_id(ExchangeStage::Cross, self.forwarded_chunks);
            if !self.mail.test(cross, self.rank, &self.gateway_peers())? {
                break;
            }
            self.forward_chunk(times)?;
        }
        for chunk in self.received_chunks..self.forwarded_chunks {
            self.mail.test(self.exchange_id(ExchangeStage::Deal, chunk), self.rank, &peers)?;
        }
        while self.summed_chunks < self.answered_chunks
            && self.mail.test(
                self.exchange_id(ExchangeStage::Gather, self.summed_chunks),
                self.rank,
                &peers,
            )?
        {
            self.forward_answers(times)?;
        }
        Ok(())
    }
}
