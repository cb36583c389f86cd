//! The combine: answers travel to the gateways, and their sums to the sources.

use super::{AllToAll, ExchangeShape, ExchangeStage};
use crate::backend::{LayerStage, StageTimes};
use crate::clock::time_work;
use crate::cpu::peer::codec::{self, ByteReader};
use crate::cpu::send_buffer::{answer_order, rows_answered_in};
use crate::error::ExecError;
use crate::transport::{Purpose, TransportError};
use crate::weights::Matrix;

impl AllToAll<'_> {
    /// Returns the answers of a chunk, `[R]`. Chunks must be answered in order.
    pub(in crate::cpu::peer) fn send_answers(
        &mut self,
        answers: &[Matrix],
        times: &mut StageTimes,
    ) -> Result<(), ExecError> {
        let ((group, index), groups, chunk) = (self.home, self.shape.groups, self.answered_chunks);
        let time = &mut times[LayerStage::Combine as usize];
        let to = time_work(time, || {
            let mut to: Vec<(usize, Vec<u8>)> = Vec::with_capacity(groups.size);
            for at in (0..groups.size).filter(|&at| at != index) {
                let of_gateway = || (0..groups.count).map(|group| &answers[groups.rank_at(group, at)]);
                let mut bytes = Vec::with_capacity(of_gateway().map(Matrix::bytes).sum::<u64>() as usize);
                of_gateway().for_each(|answer| codec::encode_matrix(answer, &mut bytes));
                to.push((groups.rank_at(group, at), bytes));
            }
            // Answers that stay here: those to own tokens, and those to tokens for which this rank is the
            // gateway.
            let here = (0..groups.count).map(|of| &answers[groups.rank_at(of, index)]);
            for (of, answer) in here.enumerate() {
                self.wire.record_local(Purpose::Combine, answer.bytes());
                match &mut self.relays[of] {
                    Some(relay) => relay.add_own_answer(index, answer),
                    None => self.answers[index].append(answer),
                }
            }
            to
        });
        self.wire.start_exchange(
            Purpose::Combine,
            self.exchange_id(ExchangeStage::Gather, chunk),
            to,
            self.group_peers(),
        )?;
        self.answered_chunks += 1;
        Ok(())
    }

    /// Receives the answers of this group to the next chunk, and sends their sums to other groups.
    pub(super) fn forward_answers(&mut self, times: &mut StageTimes) -> Result<(), ExecError> {
        let ExchangeShape { groups, hidden, .. } = self.shape;
        let (chunk, (own, index)) = (self.summed_chunks, self.home);
        let came = self.wire.wait(Purpose::Combine, self.exchange_id(ExchangeStage::Gather, chunk))?;
        let time = &mut times[LayerStage::Combine as usize];
        time_work(time, || {
            for (from, message) in self.group_peers().into_iter().zip(came) {
                let ((_, rank), mut reader) = (groups.position_of(from), ByteReader(&message));
                let read = || {
                    for (group, relay) in self.relays.iter_mut().enumerate() {
                        match relay {
                            Some(relay) => relay.read_answers(rank, chunk, &mut reader)?,
                            None if group == own => {
                                let rows = rows_answered_in(&self.own[rank].spans, chunk).count();
                                codec::decode_into(&mut reader, rows * hidden, &mut self.answers[rank])?;
                            }
                            None => {}
                        }
                    }
                    reader.expect_end()
                };
                read().map_err(|reason| self.wire.malformed_message(Purpose::Combine, from, reason))?;
            }
            Ok::<_, TransportError>(())
        })?;
        self.summed_chunks += 1;
        if groups.count > 1 {
            let to = time_work(time, || {
                let sums = |other: usize| {
                    let mut bytes = Vec::new();
                    if let Some(relay) = &self.relays[other] {
                        codec::encode_matrix(&relay.sum_answers(chunk), &mut bytes);
                    }
                    (groups.rank_at(other, index), bytes)
                };
                groups.other_groups(own).map(sums).collect()
            });
            self.wire.start_exchange(
                Purpose::Combine,
                self.exchange_id(ExchangeStage::Return, chunk),
                to,
                self.gateway_peers(),
            )?;
        }
        Ok(())
    }

    /// Waits for all answers. Returns their tokens and rows: one entry per rank of this group, at the
    /// position of this group, and one per other group.
    pub(in crate::cpu::peer) fn wait_answers(
        mut self,
        times: &mut StageTimes,
    ) -> Result<(Vec<Vec<u32>>, Vec<Matrix>), ExecError> {
        let ExchangeShape { groups, chunks, hidden, .. } = self.shape;
        while self.summed_chunks < chunks.count() {
            self.forward_answers(times)?;
        }
        for chunk in 0..if groups.count > 1 { chunks.count() } else { 0 } {
            let came = self.wire.wait(Purpose::Combine, self.exchange_id(ExchangeStage::Return, chunk))?;
            for (group, message) in groups.other_groups(self.home.0).zip(came) {
                let at = groups.size + group;
                let rows = rows_answered_in(&self.own[at].spans, chunk).count();
                let mut reader = ByteReader(&message);
                time_work(&mut times[LayerStage::Combine as usize], || {
                    codec::decode_into(&mut reader, rows * hidden, &mut self.answers[at])?;
                    reader.expect_end()
                })
                .map_err(self.malformed_message(Purpose::Combine, groups.rank_at(group, self.home.1)))?;
            }
        }
        // The tokens in the order in which their answers arrived.
        let order = |at: usize| -> Vec<u32> {
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
            .map(|&at| std::mem::replace(&mut self.answers[at], Matrix::with_capacity(self.shape.dtype, 0)))
            .collect();
        Ok((sent, answers))
    }
}
