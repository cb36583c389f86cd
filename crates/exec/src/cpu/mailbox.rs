//! The messages of one layer: moved between the ranks of this process, encoded between processes.

use super::codec::{self, DecodeError};
use super::send_buffer::SendBuffer;
use crate::comm::{CommError, ProcessGroup, Purpose};
use crate::error::ExecError;
use crate::weights::Matrix;
use std::cell::RefCell;
use std::collections::HashMap;

/// A message to a rank. Those to other processes are encoded.
#[derive(Debug)]
pub(super) enum Message {
    /// The encoded message.
    Encoded(Vec<u8>),
    /// Tokens: the sender's own, with the first chunk only, and the encoded ones that it forwards.
    Tokens { own: Option<SendBuffer>, forwarded: Vec<u8> },
    /// Answers, one matrix per source group.
    Answers(Vec<Matrix>),
}

impl Message {
    /// Returns the bytes that the message has, or would have if it were encoded.
    fn encoded_len(&self) -> usize {
        match self {
            Message::Encoded(bytes) => bytes.len(),
            Message::Tokens { own, forwarded } => {
                own.as_ref().map_or(0, |own| codec::encoded_len(own) as usize) + forwarded.len()
            }
            Message::Answers(answers) => answers.iter().map(Matrix::bytes).sum::<u64>() as usize,
        }
    }

    /// Returns the bytes of an encoded message.
    pub(super) fn into_bytes(self) -> Result<Vec<u8>, DecodeError> {
        match self {
            Message::Encoded(bytes) => Ok(bytes),
            Message::Tokens { .. } | Message::Answers(_) => Err("it is not encoded"),
        }
    }
}

/// Exchange number, destination and source of a message.
type MessageKey = (u64, usize, usize);

/// The messages under way between the ranks of this process, and the way to those of other processes.
#[derive(Debug)]
pub(super) struct Mailbox<'a> {
    pub(super) group: &'a ProcessGroup,
    messages: RefCell<HashMap<MessageKey, Message>>,
}

impl<'a> Mailbox<'a> {
    pub(super) fn new(group: &'a ProcessGroup) -> Self {
        Self { group, messages: RefCell::default() }
    }

    fn remote_ranks(&self, ranks: &[usize]) -> Vec<usize> {
        ranks.iter().copied().filter(|&rank| !self.group.is_local(rank)).collect()
    }

    /// Begins an exchange of rank `me` with some ranks, which may include itself. Messages to other processes
    /// must be encoded.
    pub(super) fn start_exchange(
        &self,
        purpose: Purpose,
        number: u64,
        me: usize,
        to: Vec<(usize, Message)>,
        from: &[usize],
    ) -> Result<(), ExecError> {
        let mut remote = Vec::new();
        for (to, message) in to {
            match message {
                Message::Encoded(bytes) if !self.group.is_local(to) => remote.push((to, bytes)),
                message => {
                    self.group.record_bytes(purpose, [me, to], message.encoded_len());
                    self.messages.borrow_mut().insert((number, to, me), message);
                }
            }
        }
        let from = self.remote_ranks(from);
        if remote.is_empty() && from.is_empty() {
            return Ok(());
        }
        Ok(self.group.start_exchange(purpose, number, remote, from)?)
    }

    /// Returns whether all messages of an exchange have arrived, and advances those under way.
    pub(super) fn test(&self, number: u64, me: usize, from: &[usize]) -> Result<bool, ExecError> {
        let messages = self.messages.borrow();
        let has_arrived =
            |&rank: &usize| !self.group.is_local(rank) || messages.contains_key(&(number, me, rank));
        let here = from.iter().all(has_arrived);
        Ok((self.remote_ranks(from).is_empty() || self.group.test(number)?) && here)
    }

    /// Waits for the messages of an exchange. Returns them in the order of `from`. The ranks of this process
    /// must have sent theirs before.
    pub(super) fn wait(
        &self,
        purpose: Purpose,
        number: u64,
        me: usize,
        from: &[usize],
    ) -> Result<Vec<Message>, ExecError> {
        let remote = self.remote_ranks(from);
        let came = if remote.is_empty() { Vec::new() } else { self.group.wait(purpose, number)? };
        let mut came = came.into_iter().map(Message::Encoded);
        let mut messages = self.messages.borrow_mut();
        let next = |&rank: &usize| {
            if self.group.is_local(rank) { messages.remove(&(number, me, rank)) } else { came.next() }
        };
        let all: Option<Vec<Message>> = from.iter().map(next).collect();
        all.ok_or_else(|| CommError::not_started(number).into())
    }
}
