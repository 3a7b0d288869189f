//! A row that rots in memory, on purpose: how tests see that the digest notices (feature `rot`).

use crate::digest::Sum;
use crate::row::Kept;
use crate::{Digest, Store};

#[cfg(feature = "planted")]
thread_local! {
    /// Rotten values, and what they were to be: there while the bug is planted.
    static FORGIVEN: std::cell::RefCell<Option<std::collections::BTreeMap<Vec<u8>, Vec<u8>>>> =
        const { std::cell::RefCell::new(None) };
}

/// Plants a digest that subtracts what a rotten row was to hold, in every store that this thread changes, or takes it out again
/// (the bug `P14SubtractsWhatItShouldHold`).
#[cfg(feature = "planted")]
pub fn plant_forgiving_digest(is_planted: bool) {
    FORGIVEN.set(is_planted.then(Default::default));
}

/// The value as it is stored, or, if the bug is planted, as it was before it rotted.
#[cfg(feature = "planted")]
pub(crate) fn with_what_it_should_hold(stored: &[u8], then: impl FnOnce(&[u8])) {
    FORGIVEN.with_borrow(|forgiven| {
        then(forgiven.as_ref().and_then(|sound| sound.get(stored)).map_or(stored, |sound| sound))
    });
}

impl Store {
    /// Flips a bit of this key's row as it is stored, as a failing memory would: nobody is told, and no number is kept. Whether
    /// there was a bit to flip: a value that is empty, or in pages of its own, stays.
    pub fn rot(&mut self, key: &[u8]) -> bool {
        let (path, found) = self.image.present.find(&mut self.space, key);
        if !found {
            return false;
        }
        let (leaf, at) = path.place();
        let mut payload = self.space.page(leaf).payload(at).to_vec();
        let kept = Kept::decode(&payload);
        if kept.overflow().is_some() || Kept::read(self.space.mapping(), &payload).value.is_empty() {
            return false;
        }
        #[cfg(feature = "planted")]
        let sound = Kept::read(self.space.mapping(), &payload).value.to_vec();
        *payload.last_mut().expect("its value is there") ^= 1;
        #[cfg(feature = "planted")]
        FORGIVEN.with_borrow_mut(|forgiven| {
            let rotten = Kept::read(self.space.mapping(), &payload).value.to_vec();
            forgiven.as_mut().map(|forgiven| forgiven.insert(rotten, sound))
        });
        self.image.present.replace(&mut self.space, &path, key, payload.len()).copy_from_slice(&payload);
        true
    }

    /// Goes on with the digest that was kept of its rows, as whoever opens a file does. An import makes one of the rows that come, and
    /// rot among them would be forgotten.
    pub fn go_on_with_digest(&mut self, kept: Digest) {
        let of_rows = self.image.digest();
        let rot = kept.0.wrapping_sub(of_rows.0);
        self.image.sum = Sum(self.image.sum.0.wrapping_add(rot));
    }
}

#[cfg(test)]
mod tests {
    use crate::{Pacing, Store};

    /// A change of a rotten row leaves a digest that says so, for ever: a digest that subtracted what the row was to be
    /// would go on as if nothing had happened.
    #[test]
    fn a_rotten_row_shows_when_it_is_changed() {
        for is_deleted in [false, true] {
            let (mut sound, mut rotten) = (Store::new(), Store::new());
            for store in [&mut sound, &mut rotten] {
                store.put_plain(b"p", b"plain");
                store.change().put(b"a", b"1");
            }
            for key in [&b"p"[..], b"a"] {
                assert!(rotten.rot(key));
            }
            assert_eq!(rotten.digest(), sound.digest(), "nobody has touched the rows yet");
            let view = rotten.freeze();
            assert_ne!(view.recompute_digest(&Pacing::default()), Ok(view.digest()), "but whoever reads them sees it");
            for key in [&b"p"[..], b"a"] {
                for store in [&mut sound, &mut rotten] {
                    match (key, is_deleted) {
                        (b"p", true) => drop(store.delete_plain(key)),
                        (b"p", false) => store.put_plain(key, b"new"),
                        (_, true) => drop(store.change().delete(key)),
                        (_, false) => drop(store.change().put(key, b"new")),
                    }
                }
                assert_ne!(rotten.digest(), sound.digest());
            }
            let rows = |store: &Store| format!("{:?}", store.prefix(b"").collect::<Vec<_>>());
            assert_eq!(rows(&rotten), rows(&sound), "the rows are the same again");
            assert_ne!(rotten.digest(), sound.digest(), "and the digest still says that they were not");
        }
    }
}
