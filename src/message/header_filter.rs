//! Look-ups of headers that mostly are not there.
//!
//! A proxy asks each request for some twenty headers, and a request has few. A look-up in a `HeaderMap` hashes the name, so
//! most of that work is for nothing. The filter is a Bloom filter with one hash function: it answers most look-ups of absent
//! headers with a few instructions (docs/BENCHMARKS.md).

use http::header::{HeaderMap, HeaderName, HeaderValue, ValueIter};

/// A set of header names: never without one that was put in, sometimes with others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeaderFilter(u64);

/// Headers with their filter.
#[derive(Clone, Copy)]
pub struct Headers<'m> {
    map: &'m HeaderMap,
    filter: HeaderFilter,
}

impl HeaderFilter {
    /// The filter of these names.
    pub fn new<'n>(names: impl IntoIterator<Item = &'n HeaderName>) -> Self {
        Self(names.into_iter().fold(0, |bits, name| bits | bit(name)))
    }

    /// Whether the set may contain this name.
    #[inline(always)]
    pub fn may_contain(self, name: &HeaderName) -> bool {
        self.0 & bit(name) != 0
    }

    /// The map with its filter, which must be of the map's names.
    pub fn on(self, map: &HeaderMap) -> Headers<'_> {
        Headers { map, filter: self }
    }
}

/// The bit of a name. The hash tells apart the names that sidelink looks for from those that requests mostly have. Inlined, as
/// are the look-ups: for a constant name the bit is a constant.
#[inline(always)]
fn bit(name: &HeaderName) -> u64 {
    let bytes = name.as_str().as_bytes();
    let [first, last] = [bytes.first(), bytes.last()].map(|byte| byte.map_or(0, |byte| u64::from(*byte)));
    1 << ((bytes.len() as u64 + first + 3 * last) % 64)
}

impl<'m> From<&'m HeaderMap> for Headers<'m> {
    /// Without a filter: every look-up is made.
    fn from(map: &'m HeaderMap) -> Self {
        HeaderFilter(u64::MAX).on(map)
    }
}

impl<'m> Headers<'m> {
    /// The map.
    pub fn map(self) -> &'m HeaderMap {
        self.map
    }

    /// The filter.
    pub fn filter(self) -> HeaderFilter {
        self.filter
    }

    /// Whether there is a header of this name.
    #[inline(always)]
    pub fn contains(self, name: &HeaderName) -> bool {
        self.may_contain(name) && self.map.contains_key(name)
    }

    /// The values of all headers of this name.
    #[inline(always)]
    pub fn get_all(self, name: &HeaderName) -> Values<'m> {
        Values(self.may_contain(name).then(|| self.map.get_all(name).iter()))
    }

    /// Whether there may be a header of one of the names in `filter`.
    pub fn may_contain_any(self, filter: HeaderFilter) -> bool {
        self.filter.0 & filter.0 != 0
    }

    #[inline(always)]
    fn may_contain(self, name: &HeaderName) -> bool {
        self.filter.may_contain(name)
    }
}

/// Values of one header.
pub struct Values<'m>(Option<ValueIter<'m, HeaderValue>>);

impl<'m> Iterator for Values<'m> {
    type Item = &'m HeaderValue;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        self.0.as_mut()?.next()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api;

    #[test]
    fn every_header_that_is_there_is_found_and_no_other() {
        let names = [http::header::HOST, api::TOKEN, http::header::COOKIE, HeaderName::from_static("x")];
        let absent = [
            http::header::RANGE,
            http::header::VIA,
            HeaderName::from_static("x-security-token"),
            HeaderName::from_static("x-language"),
        ];
        let map: HeaderMap = names.iter().map(|name| (name.clone(), HeaderValue::from_static("1"))).collect();
        for headers in [HeaderFilter::new(map.keys()).on(&map), Headers::from(&map)] {
            assert!(names.iter().all(|name| headers.contains(name) && headers.get_all(name).count() == 1));
            assert!(absent.iter().all(|name| !headers.contains(name) && headers.get_all(name).next().is_none()));
        }
    }
}
