//! Sets and maps of few entries, as every row has them: one allocation of just their size.
//!
//! A row has one needed log and one locality group as a rule; a tree of eleven places for each would make up half
//! of the master's memory. Encoded like the ordered sets and maps of the standard library.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// An ordered set.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct FewSet<T>(Vec<T>);

/// An ordered map.
#[derive(Clone, PartialEq, Eq)]
pub struct FewMap<K, V>(Vec<(K, V)>);

impl<T: Ord> FewSet<T> {
    /// Nothing in it, nothing allocated.
    pub const fn new() -> FewSet<T> {
        FewSet(Vec::new())
    }

    pub fn contains(&self, item: &T) -> bool {
        self.0.binary_search(item).is_ok()
    }

    /// Whether it is new.
    pub fn insert(&mut self, item: T) -> bool {
        let Err(place) = self.0.binary_search(&item) else { return false };
        self.0.reserve_exact(1);
        self.0.insert(place, item);
        true
    }

    /// Whether it was in it.
    pub fn remove(&mut self, item: &T) -> bool {
        let Ok(place) = self.0.binary_search(item) else { return false };
        self.0.remove(place);
        self.0.shrink_to_fit();
        true
    }

    /// In order.
    pub fn iter(&self) -> std::slice::Iter<'_, T> {
        self.0.iter()
    }
}

impl<K: Ord, V> FewMap<K, V> {
    /// Nothing in it, nothing allocated.
    pub const fn new() -> FewMap<K, V> {
        FewMap(Vec::new())
    }

    /// What is under the key, made if there is nothing.
    pub fn entry(&mut self, key: K) -> &mut V
    where
        V: Default,
    {
        let place = match self.0.binary_search_by(|(known, _)| known.cmp(&key)) {
            Ok(place) => place,
            Err(place) => {
                self.0.reserve_exact(1);
                self.0.insert(place, (key, V::default()));
                place
            }
        };
        &mut self.0[place].1
    }

    pub fn retain(&mut self, mut is_kept: impl FnMut(&V) -> bool) {
        self.0.retain(|(_, value)| is_kept(value));
        self.0.shrink_to_fit();
    }

    /// In order of their keys.
    pub fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.0.iter().map(|(key, value)| (key, value))
    }

    /// In order of their keys.
    pub fn values(&self) -> impl Iterator<Item = &V> {
        self.0.iter().map(|(_, value)| value)
    }

    /// In order of their keys.
    pub fn values_mut(&mut self) -> impl Iterator<Item = &mut V> {
        self.0.iter_mut().map(|(_, value)| value)
    }
}

impl<K: Ord, V> Default for FewMap<K, V> {
    fn default() -> FewMap<K, V> {
        FewMap::new()
    }
}

impl<T: Ord> From<BTreeSet<T>> for FewSet<T> {
    fn from(set: BTreeSet<T>) -> FewSet<T> {
        FewSet(set.into_iter().collect())
    }
}

impl<T: Ord, const N: usize> From<[T; N]> for FewSet<T> {
    fn from(items: [T; N]) -> FewSet<T> {
        FewSet::from(BTreeSet::from(items))
    }
}

impl<K: Ord, V> From<BTreeMap<K, V>> for FewMap<K, V> {
    fn from(map: BTreeMap<K, V>) -> FewMap<K, V> {
        FewMap(map.into_iter().collect())
    }
}

impl<'a, T: Ord> IntoIterator for &'a FewSet<T> {
    type Item = &'a T;
    type IntoIter = std::slice::Iter<'a, T>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl<T: fmt::Debug> fmt::Debug for FewSet<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(&self.0).finish()
    }
}

impl<K: fmt::Debug, V: fmt::Debug> fmt::Debug for FewMap<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.0.iter().map(|(key, value)| (key, value))).finish()
    }
}

impl<T: Serialize> Serialize for FewSet<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(&self.0)
    }
}

impl<'de, T: Ord + Deserialize<'de>> Deserialize<'de> for FewSet<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<FewSet<T>, D::Error> {
        Ok(FewSet::from(BTreeSet::deserialize(deserializer)?))
    }
}

impl<K: Serialize, V: Serialize> Serialize for FewMap<K, V> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(key, value)| (key, value)))
    }
}

impl<'de, K: Ord + Deserialize<'de>, V: Deserialize<'de>> Deserialize<'de> for FewMap<K, V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<FewMap<K, V>, D::Error> {
        Ok(FewMap::from(BTreeMap::deserialize(deserializer)?))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn they_do_and_encode_what_the_standard_ones_do(steps in proptest::collection::vec((any::<bool>(), 0_u8..6), 0..40)) {
            let (mut few, mut many) = (FewSet::new(), BTreeSet::new());
            let (mut few_map, mut many_map) = (FewMap::new(), BTreeMap::new());
            for (is_insertion, item) in steps {
                if is_insertion {
                    prop_assert_eq!(few.insert(item), many.insert(item));
                    *few_map.entry(item) += 1;
                    *many_map.entry(item).or_insert(0) += 1;
                } else {
                    prop_assert_eq!(few.remove(&item), many.remove(&item));
                    few_map.retain(|value| *value != item);
                    many_map.retain(|_, value| *value != item);
                }
                prop_assert_eq!(few.contains(&3), many.contains(&3));
                prop_assert!(few.iter().eq(&many) && few_map.iter().eq(&many_map));
                let bytes = postcard::to_stdvec(&(&few, &few_map)).unwrap();
                prop_assert_eq!(&bytes, &postcard::to_stdvec(&(&many, &many_map)).unwrap());
                prop_assert_eq!(postcard::from_bytes(&bytes), Ok((few.clone(), few_map.clone())));
            }
        }
    }
}
