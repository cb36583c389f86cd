//! The combine: answers travel to the gateways, and their sums to the sources.

use super::{AllToAll, ExchangeShape, ExchangeStage};
use crate::backend::{LayerStage, StageTimes};
use crate::clock::time_work;
use crate::comm::{CommError, Purpose};
use crate::cpu::codec::{self, ByteReader, DecodeError};
use crate::cpu::mailbox::Message;
use crate::cpu::send_buffer::{answer_order, rows_answered_in};
use crate::error::ExecError;
use crate::weights::Matrix;

impl AllToAll<'_> {
    /// Returns answers as a message: to a rank of this process as they are, otherwise encoded.
    fn answer_message(&self, to: usize, answers: Vec<Matrix>) -> Message {
        if self.mail.group.is_local(to) {
            return Message::Answers(answers);
        }
        let mut bytes = Vec::with_capacity(answers.iter().map(Matrix::bytes).sum::<u64>() as usize);
        answers.iter().for_each(|answer| codec::encode_matrix(answer, &mut bytes));
        Message::Encoded(bytes)
    }

    /// Sends the answers of a chunk, `[R]`. Chunks must be answered in order.
    pub(in crate::cpu) fn send_answers(
        &mut self,
        mut answers: Vec<Matrix>,
        times: &mut StageTimes,
    ) -> Result<(), ExecError> {
        let ((group, _), groups, dtype) = (self.home, self.shape.groups, self.shape.dtype);
        let to = time_work(&mut times[LayerStage::Combine as usize], || {
            let to = |at: usize| {
                let mut take = |group| {
                    let answer = &mut answers[groups.rank_at(group, at)];
                    std::mem::replace(answer, Matrix::with_capacity(dtype, 0))
                };
                let of_gateway = (0..groups.count).map(&mut take).collect();
                let to = groups.rank_at(group, at);
                (to, self.answer_message(to, of_gateway))
            };
            (0..groups.size).map(to).collect()
        });
        let gather = self.exchange_id(ExchangeStage::Gather, self.answered_chunks);
        self.mail.start_exchange(Purpose::Combine, gather, self.rank, to, &self.group_ranks())?;
        self.answered_chunks += 1;
        Ok(())
    }

    /// Receives the answers of this group to all chunks, and sends their sums to other groups.
    pub(in crate::cpu) fn forward_all_answers(&mut self, times: &mut StageTimes) -> Result<(), ExecError> {
        while self.summed_chunks < self.shape.chunks.count() {
            self.forward_answers(times)?;
        }
        Ok(())
    }

    /// Receives the answers of this group to the next chunk, and sends their sums to other groups.
    pub(super) fn forward_answers(&mut self, times: &mut StageTimes) -> Result<(), ExecError> {
        let groups = self.shape.groups;
        let (chunk, (own, index), peers) = (self.summed_chunks, self.home, self.group_ranks());
        let gather = self.exchange_id(ExchangeStage::Gather, chunk);
        let came = self.mail.wait(Purpose::Combine, gather, self.rank, &peers)?;
        let time = &mut times[LayerStage::Combine as usize];
        time_work(time, || {
            for (from, message) in peers.into_iter().zip(came) {
                let (_, rank) = groups.position_of(from);
                self.accept_answers(rank, chunk, message)
                    .map_err(self.malformed_message(Purpose::Combine, from))?;
            }
            Ok::<_, CommError>(())
        })?;
        self.summed_chunks += 1;
        if groups.count > 1 {
            let to = time_work(time, || {
                let sums = |other: usize| {
                    let sums = self.relays[other].as_ref().map(|relay| relay.sum_answers(chunk));
                    let to = groups.rank_at(other, index);
                    (to, self.answer_message(to, sums.into_iter().collect()))
                };
                groups.other_groups(own).map(sums).collect()
            });
            let back = self.exchange_id(ExchangeStage::Return, chunk);
            self.mail.start_exchange(Purpose::Combine, back, self.rank, to, &self.gateway_peers())?;
        }
        Ok(())
    }

    /// Accepts the answers of the rank with an index in this group, to its own group and as a gateway.
    fn accept_answers(&mut self, rank: usize, chunk: usize, message: Message) -> Result<(), DecodeError> {
        let hidden = self.shape.hidden;
        if let Message::Answers(answers) = message {
            for (relay, answer) in self.relays.iter_mut().zip(answers) {
                match relay {
                    Some(relay) => relay.add_answers(rank, answer),
                    None => append_answers(&mut self.answers[rank], answer),
                }
            }
            return Ok(());
        }
        let bytes = message.into_bytes()?;
        let mut reader = ByteReader(&bytes);
        for (group, relay) in self.relays.iter_mut().enumerate() {
            match relay {
                Some(relay) => relay.read_answers(rank, chunk, &mut reader)?,
                None if group == self.home.0 => {
                    let rows = rows_answered_in(&self.own[rank].spans, chunk).count();
                    codec::decode_into(&mut reader, rows * hidden, &mut self.answers[rank])?;
                }
                None => {}
            }
        }
        reader.expect_end()
    }

    /// Waits for all answers.
    pub(in crate::cpu) fn wait_answers(&mut self, times: &mut StageTimes) -> Result<(), ExecError> {
        let ExchangeShape { groups, chunks, hidden, .. } = self.shape;
        self.forward_all_answers(times)?;
        for chunk in 0..if groups.count > 1 { chunks.count() } else { 0 } {
            let back = self.exchange_id(ExchangeStage::Return, chunk);
            let came = self.mail.wait(Purpose::Combine, back, self.rank, &self.gateway_peers())?;
            for (group, message) in groups.other_groups(self.home.0).zip(came) {
                let at = groups.size + group;
                time_work(&mut times[LayerStage::Combine as usize], || {
                    if let Message::Answers(sums) = message {
                        sums.into_iter().for_each(|sums| append_answers(&mut self.answers[at], sums));
                        return Ok(());
                    }
                    let (bytes, rows) =
                        (message.into_bytes()?, rows_answered_in(&self.own[at].spans, chunk).count());
                    let mut reader = ByteReader(&bytes);
                    codec::decode_into(&mut reader, rows * hidden, &mut self.answers[at])?;
                    reader.expect_end()
                })
                .map_err(self.malformed_message(Purpose::Combine, groups.rank_at(group, self.home.1)))?;
            }
        }
        Ok(())
    }

    /// Returns the tokens and rows of the answers, in the order of their arrival. There is one entry per rank
    /// of this group, at the position of this group, and one per other group.
    pub(in crate::cpu) fn into_answers(mut self) -> (Vec<Vec<u32>>, Vec<Matrix>) {
        let ExchangeShape { groups, chunks, dtype, .. } = self.shape;
        let mut order = |at: usize| -> Vec<u32> {
            if chunks.count() == 1 {
                return std::mem::take(&mut self.sent[at]);
            }
            answer_order(&self.own[at].spans, chunks).map(|row| self.sent[at][row]).collect()
        };
        let places: Vec<usize> = (0..groups.count)
            .flat_map(|group| {
                if group == self.home.0 {
                    0..groups.size
                } else {
                    groups.size + group..groups.size + group + 1
                }
            })
            .collect();
        let sent = places.iter().map(|&at| order(at)).collect();
        let answers = places
            .iter()
            .map(|&at| std::mem::replace(&mut self.answers[at], Matrix::with_capacity(dtype, 0)))
            .collect();
        (sent, answers)
    }
}

/// Appends answers without a copy if they are the first.
pub(in crate::cpu) fn append_answers(all: &mut Matrix, answers: Matrix) {
    if all.is_empty() {
        *all = answers;
    } else {
        all.append(&answers);
    }
}
