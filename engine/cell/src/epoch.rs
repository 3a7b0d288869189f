//! Which mastership is the current one (rule P9).

use synod_api::Epoch;
use synod_store::Store;

use crate::keyspace;

/// The epoch of the master that began last.
pub(crate) fn current(store: &Store) -> Epoch {
    let row = store.get(keyspace::EPOCH_KEY);
    row.map_or_else(Epoch::default, |row| {
        Epoch(u64::from_le_bytes(row.value.try_into().expect("the cell's own rows have the lengths it gave them")))
    })
}

/// A new master begins.
pub(crate) fn raise(store: &mut Store) {
    let next = current(store).0.checked_add(1).expect("fewer than 2^64 masters");
    store.put_plain(keyspace::EPOCH_KEY, &next.to_le_bytes());
}
