//! What the operations on keys and files do.
//!
//! Each decides first and changes then: a change raises the revision, which an operation that finds nothing to do must
//! not. A file's instance number is the revision that created it and its content generation its version (Chubby's
//! words): the store keeps both with every row anyway.

use synod_api::{Expected, Found, Operation, Refusal, Revision, Version};
use synod_store::{Row, Store};

use crate::Told;
use crate::keyspace::KeyBuffer;

/// Carries one out, and appends its answer.
pub(crate) fn perform(store: &mut Store, buffer: &mut KeyBuffer, operation: Operation<'_>, answer: &mut Vec<u8>) {
    let told = match operation {
        Operation::Get { key } => read(store, buffer.key(key)),
        Operation::Put { key, value } => Told::Written { revision: write(store, buffer.key(key), value) },
        Operation::Delete { key } => delete(store, buffer.key(key)),
        Operation::CompareAndSwap { key, expected, value } => swap(store, buffer.key(key), expected, value),
        Operation::CreateFile { path, contents } => create(store, buffer.file(path), contents),
        Operation::WriteFile { path, contents } => overwrite(store, buffer.file(path), contents),
        Operation::ReadFile { path } => read(store, buffer.file(path)),
        Operation::OpenSession | Operation::CloseSession => unreachable!("sessions have a module of their own"),
    };
    told.encode(answer);
}

/// Answers a read from the database as it is, or as it was at a revision. A store without a history knows the past of what has
/// not changed since.
pub(crate) fn read_at(
    store: &Store,
    buffer: &mut KeyBuffer,
    operation: Operation<'_>,
    at: Option<Revision>,
    answer: &mut Vec<u8>,
) {
    let row = match operation {
        Operation::Get { key } => buffer.key(key),
        Operation::ReadFile { path } => buffer.file(path),
        changing => panic!("{} is not a read", changing.name()),
    };
    let has = Revision(store.revision().0);
    let now = store.get(row);
    let then = match at.filter(|at| *at < has) {
        None => Ok(now),
        Some(at) if now.is_some_and(|row| row.modify_revision.0 <= at.0) => Ok(now),
        Some(at) => store.get_at(row, synod_store::Revision(at.0)).map_err(|_| Refusal::Compacted { has, wanted: at }),
    };
    let told = match then {
        Err(refusal) => Told::Refused(refusal),
        Ok(row) => Told::Read { revision: at.unwrap_or(has), found: row.map(found) },
    };
    told.encode(answer);
}

fn found(row: Row<'_>) -> Found<&[u8]> {
    let Row { create_revision, modify_revision, version, value } = row;
    Found {
        value,
        create_revision: Revision(create_revision.0),
        modify_revision: Revision(modify_revision.0),
        version: Version(version.0),
    }
}

fn read<'a>(store: &'a Store, row: &[u8]) -> Told<'a> {
    let Some(Row { create_revision, modify_revision, version, value }) = store.get(row) else {
        return Told::Absent;
    };
    Told::Value {
        value,
        create_revision: Revision(create_revision.0),
        modify_revision: Revision(modify_revision.0),
        version: Version(version.0),
    }
}

fn write(store: &mut Store, row: &[u8], value: &[u8]) -> Revision {
    let mut change = store.change();
    change.put(row, value);
    Revision(change.revision().0)
}

fn delete(store: &mut Store, row: &[u8]) -> Told<'static> {
    if store.get(row).is_none() {
        return Told::NotThere;
    }
    let mut change = store.change();
    change.delete(row);
    Told::Deleted { revision: Revision(change.revision().0) }
}

fn swap<'a>(store: &'a mut Store, row: &[u8], expected: Expected<'_>, value: &[u8]) -> Told<'a> {
    let equal = match (store.get(row), expected) {
        (None, Expected::Absent) => true,
        (Some(current), Expected::Value(expected)) => current.value == expected,
        (None, Expected::Value(_)) | (Some(_), Expected::Absent) => false,
    };
    if equal {
        return Told::Swapped { revision: write(store, row, value) };
    }
    Told::Unequal { current: store.get(row).map(|current| current.value) }
}

fn create(store: &mut Store, row: &[u8], contents: &[u8]) -> Told<'static> {
    if let Some(file) = store.get(row) {
        return Told::Exists { revision: Revision(file.create_revision.0) };
    }
    Told::Created { revision: write(store, row, contents) }
}

fn overwrite(store: &mut Store, row: &[u8], contents: &[u8]) -> Told<'static> {
    if store.get(row).is_none() {
        return Told::NotThere;
    }
    Told::Written { revision: write(store, row, contents) }
}
