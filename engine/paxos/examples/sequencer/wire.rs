//! Messages and records as bytes. The protocol's types derive no serialization: the format is the application's own.
//!
//! A number is little-endian in its own width; a list, its length (`u16`) and its items; an enum, a tag and its fields.

use bytes::Bytes;
use synod_paxos::{
    AcceptedSlot, Ballot, Batch, Configuration, Configurations, CrashVector, HardState, Incarnation, LogPosition,
    LostSlots, Message, Record, ReplicaId, Slot, Voter,
};

pub(crate) trait Wire: Sized {
    fn put(&self, out: &mut Vec<u8>);

    /// Takes a value off the front. `None`: there is none, the bytes come from somewhere else.
    fn take(bytes: &mut &[u8]) -> Option<Self>;

    /// The value that these bytes are, with nothing behind it.
    fn from_bytes(mut bytes: &[u8]) -> Option<Self> {
        Self::take(&mut bytes).filter(|_| bytes.is_empty())
    }
}

macro_rules! numbers {
    ($($type:ty)*) => {$(
        impl Wire for $type {
            fn put(&self, out: &mut Vec<u8>) {
                out.extend(self.to_le_bytes());
            }
            fn take(bytes: &mut &[u8]) -> Option<Self> {
                let (first, rest) = bytes.split_first_chunk()?;
                *bytes = rest;
                Some(Self::from_le_bytes(*first))
            }
        }
    )*};
}

macro_rules! structs {
    ($($type:ident { $($field:tt),* })*) => {$(
        impl Wire for $type {
            fn put(&self, out: &mut Vec<u8>) {
                $(self.$field.put(out);)*
            }
            fn take(bytes: &mut &[u8]) -> Option<Self> {
                Some($type { $($field: Wire::take(bytes)?),* })
            }
        }
    )*};
}

macro_rules! enums {
    ($($type:ident { $($tag:literal $variant:ident $(($inner:ident))? $({ $($field:ident),* })?)* })*) => {$(
        impl Wire for $type {
            fn put(&self, out: &mut Vec<u8>) {
                match self {
                    $($type::$variant $(($inner))? $({ $($field),* })? => {
                        out.push($tag);
                        $($inner.put(out);)?
                        $($($field.put(out);)*)?
                    })*
                }
            }
            fn take(bytes: &mut &[u8]) -> Option<Self> {
                Some(match u8::take(bytes)? {
                    $($tag => $type::$variant
                        $(({ let $inner = Wire::take(bytes)?; $inner }))?
                        $({ $($field: Wire::take(bytes)?),* })?,)*
                    _ => return None,
                })
            }
        }
    )*};
}

numbers! { i8 u8 u16 u32 u64 }

structs! {
    Slot { 0 }
    ReplicaId { 0 }
    Incarnation { 0 }
    Ballot { round, replica, incarnation }
    AcceptedSlot { slot, ballot, batch }
    LostSlots { first, last, ballot }
    HardState { promised, incarnation, vector, configurations, cut }
    Voter { incarnation, vector }
    LogPosition { incarnation, frame }
    Configurations { current, since, pending }
}

enums! {
    Message {
        1 Probe { chosen }
        2 ProbeAnswer { would, round, chosen }
        3 Propose { ballot, released }
        4 Promise { ballot, cut, chosen, accepted, lost, voter }
        5 Accept { ballot, slot, batch, chosen }
        6 Acknowledge { ballot, slot, voter }
        7 Reject { promised }
        8 Commit { ballot, chosen, tolerance }
        9 Release { ballot }
        10 TakeOver { ballot }
        11 Fetch { from }
        12 Entries { first, batches, chosen }
        13 Position { durable, known, asks }
        14 Rejoin { incarnation }
        15 RejoinAnswer { asked, known, is_lost, promised, chosen, accepted, voter }
        16 AskIndex { name }
        17 TellIndex { ballot, name, slot }
    }
    Record {
        1 HardState(state)
        2 Accepted { slot, ballot, chosen, batch }
        3 Chosen { slot, batch }
    }
}

impl Wire for bool {
    fn put(&self, out: &mut Vec<u8>) {
        out.push(u8::from(*self));
    }
    fn take(bytes: &mut &[u8]) -> Option<Self> {
        u8::take(bytes).filter(|byte| *byte <= 1).map(|byte| byte == 1)
    }
}

impl<A: Wire, B: Wire> Wire for (A, B) {
    fn put(&self, out: &mut Vec<u8>) {
        self.0.put(out);
        self.1.put(out);
    }
    fn take(bytes: &mut &[u8]) -> Option<Self> {
        Some((A::take(bytes)?, B::take(bytes)?))
    }
}

impl<T: Wire> Wire for Option<T> {
    fn put(&self, out: &mut Vec<u8>) {
        self.is_some().put(out);
        self.iter().for_each(|value| value.put(out));
    }
    fn take(bytes: &mut &[u8]) -> Option<Self> {
        if bool::take(bytes)? { T::take(bytes).map(Some) } else { Some(None) }
    }
}

impl<T: Wire> Wire for Vec<T> {
    fn put(&self, out: &mut Vec<u8>) {
        u16::try_from(self.len()).expect("all lists here are bounded far below").put(out);
        self.iter().for_each(|item| item.put(out));
    }
    fn take(bytes: &mut &[u8]) -> Option<Self> {
        let length = u16::take(bytes)?;
        (0..length).map(|_| T::take(bytes)).collect()
    }
}

impl Wire for Batch {
    fn put(&self, out: &mut Vec<u8>) {
        put_bytes(self.as_bytes(), out);
    }
    fn take(bytes: &mut &[u8]) -> Option<Self> {
        Batch::from_bytes(Bytes::copy_from_slice(take_bytes(bytes)?)).ok()
    }
}

impl Wire for CrashVector {
    fn put(&self, out: &mut Vec<u8>) {
        self.iter().collect::<Vec<_>>().put(out);
    }
    fn take(bytes: &mut &[u8]) -> Option<Self> {
        Some(Vec::take(bytes)?.into_iter().collect())
    }
}

impl Wire for Configuration {
    fn put(&self, out: &mut Vec<u8>) {
        let mut bytes = Vec::new();
        self.encode(&mut bytes);
        put_bytes(&bytes, out);
    }
    fn take(bytes: &mut &[u8]) -> Option<Self> {
        Configuration::decode(take_bytes(bytes)?).ok()
    }
}

fn put_bytes(bytes: &[u8], out: &mut Vec<u8>) {
    u32::try_from(bytes.len()).expect("far below 4 GiB").put(out);
    out.extend(bytes);
}

fn take_bytes<'a>(bytes: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = usize::try_from(u32::take(bytes)?).ok()?;
    let (taken, rest) = bytes.split_at_checked(length)?;
    *bytes = rest;
    Some(taken)
}
