//! The operations in flight, and the names the kernel knows them by.
//!
//! A slot owns everything the kernel may touch for its operation. Its name is its index and its generation, so that a
//! completion for an operation that is already over is told from one for the slot's next tenant.

use bytes::{Bytes, BytesMut};

use crate::aligned::AlignedBuffer;
use crate::handle::Handle;

/// The name of an operation in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Key {
    index: u32,
    generation: u32,
}

/// Which submission entry a completion entry answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ticket {
    /// The operation's only entry, or its last: its completion ends it.
    Last(Key),
    /// The write of a flush. It completes only when it fails.
    FlushWrite(Key),
    /// The ring's own read of the waker's counter.
    Wake,
    /// The ring's own request to cancel something, when it is dropped.
    Cancel,
}

/// | bits   | what                                             |
/// | 0..32  | index, or which of the ring's own                |
/// | 32..62 | generation                                       |
/// | 62..64 | last, write of a flush, (none), one of the ring's own |
impl Ticket {
    const LAST: u64 = 0;
    const FLUSH_WRITE: u64 = 1;
    const OWN: u64 = 3;

    pub(crate) fn encode(self) -> u64 {
        let of = |key: Key, kind: u64| kind << 62 | u64::from(key.generation) << 32 | u64::from(key.index);
        match self {
            Self::Last(key) => of(key, Self::LAST),
            Self::FlushWrite(key) => of(key, Self::FLUSH_WRITE),
            Self::Wake => Self::OWN << 62,
            Self::Cancel => Self::OWN << 62 | 1,
        }
    }

    pub(crate) fn decode(user_data: u64) -> Option<Self> {
        let key = Key { index: user_data as u32, generation: (user_data >> 32) as u32 & GENERATION_MASK };
        match user_data >> 62 {
            Self::LAST => Some(Self::Last(key)),
            Self::FLUSH_WRITE => Some(Self::FlushWrite(key)),
            Self::OWN => [Self::Wake, Self::Cancel].into_iter().find(|own| own.encode() == user_data),
            _ => None,
        }
    }
}

const GENERATION_MASK: u32 = (1 << 30) - 1;

/// An operation in flight, with all the memory and descriptors the kernel uses for it.
#[expect(dead_code, reason = "handles are there to be held: they keep their descriptors' numbers from being reused")]
pub(crate) enum Operation {
    Accept { listener: Handle },
    Connect { socket: Handle, address: Box<Address> },
    Recv { socket: Handle, buffer: BytesMut },
    Send(Sending),
    Flush(Flushing),
    Read { file: Handle, buffer: AlignedBuffer },
}

/// A send, perhaps of several rounds: the rest of a short one is sent on.
pub(crate) struct Sending {
    pub(crate) socket: Handle,
    pub(crate) pieces: Vec<Bytes>,
    pub(crate) total: usize,
    pub(crate) sent: usize,
    /// The piece that goes on next, and how much of it is gone.
    pub(crate) first: usize,
    pub(crate) offset: usize,
    /// Only when several pieces go at once.
    pub(crate) gather: Option<Box<Gather>>,
}

impl Sending {
    /// Notes that `count` more bytes are gone, and steps over empty pieces, so that `first` has something to send
    /// unless all is sent.
    pub(crate) fn advance(&mut self, count: usize) {
        self.sent += count;
        assert!(self.sent <= self.total, "the kernel sent more than it was given");
        self.offset += count;
        while let Some(piece) = self.pieces.get(self.first)
            && self.offset >= piece.len()
        {
            self.offset -= piece.len();
            self.first += 1;
        }
    }
}

/// What sendmsg reads besides the pieces themselves: where they are. Kept and reused; the kernel holds its address.
pub(crate) struct Gather {
    pub(crate) header: libc::msghdr,
    pub(crate) vectors: Vec<libc::iovec>,
}

/// A durable write: a write and, linked to it, a sync.
pub(crate) struct Flushing {
    #[expect(dead_code, reason = "held, as in `Operation`")]
    pub(crate) file: Handle,
    pub(crate) buffer: AlignedBuffer,
    pub(crate) offset: u64,
    pub(crate) length: u32,
    /// The place of its sync among all entries ever pushed: to see whether the pair was parted.
    pub(crate) sync_at: u64,
}

/// A socket's address as the kernel reads it.
#[repr(C)]
pub(crate) union Address {
    pub(crate) v4: libc::sockaddr_in,
    pub(crate) v6: libc::sockaddr_in6,
}

/// The operations in flight. Grows to its bound and stays; the slot freed last is used first, as it is in the cache.
pub(crate) struct Slots<T> {
    slots: Vec<Slot<T>>,
    free: Vec<u32>,
    limit: u32,
}

struct Slot<T> {
    generation: u32,
    tenant: Option<(T, Operation)>,
}

impl<T> Slots<T> {
    pub(crate) fn new(limit: u32) -> Self {
        Self { slots: Vec::new(), free: Vec::new(), limit }
    }

    pub(crate) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    pub(crate) fn insert(&mut self, token: T, operation: Operation) -> Key {
        let index = match self.free.pop() {
            Some(index) => index,
            None => {
                let index = self.slots.len() as u32;
                assert!(
                    index < self.limit,
                    "more than {} operations in flight: the caller's bound is broken",
                    self.limit
                );
                self.slots.push(Slot { generation: 0, tenant: None });
                index
            }
        };
        let slot = &mut self.slots[index as usize];
        assert!(slot.tenant.is_none(), "a free slot has no tenant");
        slot.tenant = Some((token, operation));
        Key { index, generation: slot.generation }
    }

    pub(crate) fn get_mut(&mut self, key: Key) -> Option<&mut Operation> {
        let slot = self.slots.get_mut(key.index as usize)?;
        if slot.generation != key.generation {
            return None;
        }
        slot.tenant.as_mut().map(|(_, operation)| operation)
    }

    pub(crate) fn remove(&mut self, key: Key) -> Option<(T, Operation)> {
        self.get_mut(key)?;
        let slot = &mut self.slots[key.index as usize];
        slot.generation = slot.generation.wrapping_add(1) & GENERATION_MASK;
        self.free.push(key.index);
        slot.tenant.take()
    }

    /// All that is in flight; for the rare paths, it looks at every slot.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (Key, &Operation)> {
        self.slots.iter().zip(0..).filter_map(|(slot, index)| {
            let (_, operation) = slot.tenant.as_ref()?;
            Some((Key { index, generation: slot.generation }, operation))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading() -> Operation {
        let file = Handle::from(std::fs::File::open("/dev/null").unwrap());
        Operation::Read { file, buffer: AlignedBuffer::zeroed(1) }
    }

    #[test]
    fn a_name_is_forgotten_with_its_operation() {
        let mut slots = Slots::new(2);
        let first = slots.insert('a', reading());
        let second = slots.insert('b', reading());
        assert_eq!(slots.len(), 2);
        assert_eq!(slots.remove(first).map(|(token, _)| token), Some('a'));
        assert!(slots.get_mut(first).is_none());
        assert!(slots.remove(first).is_none());
        let third = slots.insert('c', reading());
        assert_eq!(third.index, first.index);
        assert_ne!(third.generation, first.generation);
        assert!(slots.get_mut(first).is_none());
        assert_eq!(slots.iter().map(|(key, _)| key).collect::<Vec<_>>(), [third, second]);
    }

    #[test]
    #[should_panic(expected = "more than 1 operations in flight")]
    fn the_bound_holds() {
        let mut slots = Slots::new(1);
        slots.insert((), reading());
        slots.insert((), reading());
    }

    #[test]
    fn tickets_survive_the_kernel() {
        let key = Key { index: u32::MAX, generation: GENERATION_MASK };
        for ticket in [Ticket::Last(key), Ticket::FlushWrite(key), Ticket::Wake, Ticket::Cancel] {
            assert_eq!(Ticket::decode(ticket.encode()), Some(ticket));
        }
        assert_eq!(Ticket::decode(2 << 62), None);
        assert_eq!(Ticket::decode(u64::MAX), None);
    }

    #[test]
    fn a_short_send_goes_on_where_it_stopped() {
        let socket = Handle::from(std::fs::File::open("/dev/null").unwrap());
        let pieces = ["", "abc", "", "de", ""].map(|piece| Bytes::from_static(piece.as_bytes())).to_vec();
        let mut sending = Sending { socket, pieces, total: 5, sent: 0, first: 0, offset: 0, gather: None };
        let mut seen = Vec::new();
        for count in [0, 2, 1, 1, 1] {
            sending.advance(count);
            seen.push((sending.first, sending.offset));
        }
        assert_eq!(seen, [(1, 0), (1, 2), (3, 0), (3, 1), (5, 0)]);
        assert_eq!(sending.sent, sending.total);
    }
}
