//! The way back: answers to the gateways, their sums to the sources.

use super::{Flow, Shape, Stage};
use crate::exec::backend::{Phase, Times};
use crate::exec::clock::timed;
use crate::exec::cpu::parcel::{answered, last_in};
use crate::exec::cpu::peer::bytes::{self, Reader};
use crate::exec::error::ExecError;
use crate::exec::transport::{Purpose, TransportError};
use crate::exec::weights::Matrix;

impl Flow<'_> {
    /// Sends the answers of a chunk back, `[R]`, chunk after chunk.
    pub(in crate::exec::cpu::peer) fn answer(
        &mut self,
        answers: &[Matrix],
        times: &mut Times,
    ) -> Result<(), ExecError> {
        let ((group, index), groups, chunk) = (self.home, self.shape.groups, self.answered);
        let time = &mut times[Phase::Combine as usize];
        let to = timed(time, || {
            let mut to: Vec<(usize, Vec<u8>)> = Vec::with_capacity(groups.size);
            for at in (0..groups.size).filter(|&at| at != index) {
                let of_gateway = || (0..groups.count).map(|group| &answers[groups.rank(group, at)]);
                let mut bytes = Vec::with_capacity(of_gateway().map(Matrix::bytes).sum::<u64>() as usize);
                of_gateway().for_each(|answer| bytes::put(answer, &mut bytes));
                to.push((groups.rank(group, at), bytes));
            }
            // What stays: answers to own tokens, and to those that this rank is the gateway of.
            let here = (0..groups.count).map(|of| &answers[groups.rank(of, index)]);
            for (of, answer) in here.enumerate() {
                self.wire.stays(Purpose::Combine, answer.bytes());
                match &mut self.relays[of] {
                    Some(relay) => relay.keep_answer(index, answer),
                    None => self.answers[index].append(answer),
                }
            }
            to
        });
        self.wire.begin(Purpose::Combine, self.number(Stage::Gather, chunk), to, self.mates())?;
        self.answered += 1;
        Ok(())
    }

    /// Takes the answers of this group to the next chunk, and sends the sums of them to other groups.
    pub(super) fn gather(&mut self, times: &mut Times) -> Result<(), ExecError> {
        let Shape { groups, hidden, .. } = self.shape;
        let (chunk, (own, index)) = (self.gathered, self.home);
        let came = self.wire.end(Purpose::Combine, self.number(Stage::Gather, chunk))?;
        let time = &mut times[Phase::Combine as usize];
        timed(time, || {
            for (from, message) in self.mates().into_iter().zip(came) {
                let ((_, rank), mut reader) = (groups.place(from), Reader(&message));
                let read = || {
                    for (group, relay) in self.relays.iter_mut().enumerate() {
                        match relay {
                            Some(relay) => relay.answered(rank, chunk, &mut reader)?,
                            None if group == own => {
                                let rows = last_in(&self.own[rank].spans, chunk).count();
                                bytes::take_into(&mut reader, rows * hidden, &mut self.answers[rank])?;
                            }
                            None => {}
                        }
                    }
                    reader.end()
                };
                read().map_err(|reason| self.wire.malformed(Purpose::Combine, from, reason))?;
            }
            Ok::<_, TransportError>(())
        })?;
        self.gathered += 1;
        if groups.count > 1 {
            let to = timed(time, || {
                let sums = |other: usize| {
                    let mut bytes = Vec::new();
                    if let Some(relay) = &self.relays[other] {
                        bytes::put(&relay.sums(chunk), &mut bytes);
                    }
                    (groups.rank(other, index), bytes)
                };
                groups.but(own).map(sums).collect()
            });
            self.wire.begin(Purpose::Combine, self.number(Stage::Return, chunk), to, self.namesakes())?;
        }
        Ok(())
    }

    /// Waits for all answers: which tokens they are for, and their rows; those of this group's ranks in the place of this group
    /// among the others.
    pub(in crate::exec::cpu::peer) fn end(
        mut self,
        times: &mut Times,
    ) -> Result<(Vec<Vec<u32>>, Vec<Matrix>), ExecError> {
        let Shape { groups, chunks, hidden, .. } = self.shape;
        while self.gathered < chunks.count() {
            self.gather(times)?;
        }
        for chunk in 0..if groups.count > 1 { chunks.count() } else { 0 } {
            let came = self.wire.end(Purpose::Combine, self.number(Stage::Return, chunk))?;
            for (group, message) in groups.but(self.home.0).zip(came) {
                let at = groups.size + group;
                let rows = last_in(&self.own[at].spans, chunk).count();
                let mut reader = Reader(&message);
                timed(&mut times[Phase::Combine as usize], || {
                    bytes::take_into(&mut reader, rows * hidden, &mut self.answers[at])?;
                    reader.end()
                })
                .map_err(self.malformed(Purpose::Combine, groups.rank(group, self.home.1)))?;
            }
        }
        // In the order in which the answers came.
        let order = |at: usize| -> Vec<u32> {
            answered(&self.own[at].spans, chunks).map(|row| self.sent[at][row]).collect()
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
