//! Path patterns: `/{repo..}/info/lfs/objects/batch`.

use std::fmt;
use std::str::FromStr;

/// The most bytes of a pattern.
const MAX_BYTES: usize = 1024;

/// A pattern of paths. `{x}` stands for one segment, `{x..}` for one or more; all else for itself, byte for byte. The default
/// matches none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PathPattern {
    text: Box<str>,
    segments: Box<[Segment]>,
    has_captures: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Segment {
    Literal(Box<str>),
    One(Box<str>),
    Several(Box<str>),
}

impl PathPattern {
    /// Whether it has captures.
    pub fn has_captures(&self) -> bool {
        self.has_captures
    }

    /// The names of its captures.
    pub fn captures(&self) -> impl Iterator<Item = &str> {
        self.segments.iter().filter_map(|segment| match segment {
            Segment::Literal(_) => None,
            Segment::One(name) | Segment::Several(name) => Some(&**name),
        })
    }

    /// Whether it matches `path`, as it is written in a request.
    pub fn matches(&self, path: &str) -> bool {
        if self.has_captures() { self.capture(path, "").is_some() } else { *self.text == *path }
    }

    /// If it matches `path`: the text of the capture `name`, empty if it has none of this name.
    pub fn capture<'p>(&self, path: &'p str, name: &str) -> Option<&'p str> {
        let path = path.strip_prefix('/')?;
        let segments: Vec<&str> = path.split('/').collect();
        let before = self.segments.iter().take_while(|segment| !matches!(segment, Segment::Several(_))).count();
        let extra = match segments.len().checked_sub(self.segments.len()) {
            Some(0) => 0,
            // Only a pattern with a capture of several takes more segments than it has.
            Some(extra) if before < self.segments.len() => extra,
            _ => return None,
        };
        let (mut captured, mut at) = ("", 0);
        for segment in &self.segments {
            let count = if matches!(segment, Segment::Several(_)) { 1 + extra } else { 1 };
            let here = segments.get(at..at + count)?;
            match segment {
                Segment::Literal(literal) if here != [&**literal] => return None,
                Segment::Literal(_) => {}
                Segment::One(_) | Segment::Several(_) if here.iter().any(|part| part.is_empty()) => return None,
                Segment::One(known) | Segment::Several(known) if **known == *name => {
                    let from = segments.iter().take(at).map(|part| part.len() + 1).sum::<usize>();
                    let length = here.iter().map(|part| part.len() + 1).sum::<usize>() - 1;
                    captured = path.get(from..from + length)?;
                }
                Segment::One(_) | Segment::Several(_) => {}
            }
            at += count;
        }
        Some(captured)
    }

    /// Where `path` is not as this pattern: how many segments at its ends are, and the first that is not, for people. `None`: it matches.
    pub fn difference(&self, path: &str) -> Option<(usize, String)> {
        if self.matches(path) {
            return None;
        }
        let known: Vec<&str> = self.text.split('/').skip(1).collect();
        let found: Vec<&str> = path.split('/').skip(1).collect();
        let is_alike = |(segment, found): &(&Segment, &&str)| match segment {
            Segment::Literal(literal) => **literal == ***found,
            Segment::One(_) => !found.is_empty(),
            Segment::Several(_) => false,
        };
        let begin = self.segments.iter().zip(&found).take_while(is_alike).count();
        let end = self.segments.iter().rev().zip(found.iter().rev()).take_while(is_alike).count();
        // What is before a capture of several segments is counted from the begin, what is after it from the end.
        let (at, wanted) = match self.segments.get(begin) {
            Some(Segment::Several(_)) => ((found.len() - end).checked_sub(1), known.len().checked_sub(end + 1)),
            _ => (Some(begin), Some(begin)),
        };
        let here = at.and_then(|at| Some((at + 1, found.get(at)?)));
        let wanted = wanted.and_then(|wanted| known.get(wanted));
        let difference = match (here, wanted) {
            (Some((at, here)), Some(wanted)) => format!("segment {at} is {here:?}, and has to be {wanted}"),
            (Some((_, &"")), None) => "there is a slash too many at its end".to_owned(),
            (None, Some(&"")) => "there is no slash at its end".to_owned(),
            (Some((at, here)), None) => format!("segment {at}, {here:?}, is one too many"),
            (None, Some(wanted)) => format!("there is no segment for {wanted}"),
            (None, None) => "it is no path".to_owned(),
        };
        Some((begin + end, difference))
    }

    /// Whether some path matches both.
    pub fn overlaps(&self, other: &Self) -> bool {
        overlap(&self.segments, &other.segments)
    }
}

fn overlap(one: &[Segment], other: &[Segment]) -> bool {
    match (one, other) {
        ([], []) => true,
        ([], _) | (_, []) => false,
        ([Segment::Literal(literal), rest @ ..], [Segment::Literal(same), others @ ..]) => {
            literal == same && overlap(rest, others)
        }
        // A capture takes no empty segment.
        ([Segment::Literal(literal), ..], _) | (_, [Segment::Literal(literal), ..]) if literal.is_empty() => false,
        ([Segment::Several(_), rest @ ..], [next, others @ ..]) => {
            // It ends here, or takes the next segment as well, or the other one does.
            let is_several = matches!(next, Segment::Several(_));
            overlap(rest, others) || overlap(one, others) || (is_several && overlap(rest, other))
        }
        (_, [Segment::Several(_), ..]) => overlap(other, one),
        ([_, rest @ ..], [_, others @ ..]) => overlap(rest, others),
    }
}

impl FromStr for PathPattern {
    type Err = String;

    /// # Errors
    /// What is wrong, and how a pattern is written.
    fn from_str(text: &str) -> Result<Self, String> {
        let shown = text.escape_debug();
        let Some(path) = text.strip_prefix('/') else {
            return Err(format!("\"{shown}\" does not begin with a slash"));
        };
        if let Some(other) = text.chars().find(|char| !char.is_ascii_graphic() || matches!(char, '?' | '#')) {
            let other = other.escape_debug();
            return Err(format!(
                "\"{shown}\" has \"{other}\" in it: a path as in a request has none, write it percent-encoded"
            ));
        }
        if text.len() > MAX_BYTES {
            return Err(format!("a path has {MAX_BYTES} bytes at most, this one has {}", text.len()));
        }
        let mut segments: Vec<Segment> = Vec::new();
        let mut names: Vec<&str> = Vec::new();
        for part in path.split('/') {
            let Some(inner) = part.strip_prefix('{').and_then(|part| part.strip_suffix('}')) else {
                if part.contains(['{', '}']) {
                    return Err(format!(
                        "\"{shown}\" has a brace within a segment: a capture is a whole segment, {{name}} or {{name..}}"
                    ));
                }
                segments.push(Segment::Literal(part.into()));
                continue;
            };
            let (name, several) = inner.strip_suffix("..").map_or((inner, false), |name| (name, true));
            if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') {
                return Err(format!("\"{shown}\" has a capture without a name of letters, digits and underscores"));
            }
            if names.contains(&name) {
                return Err(format!("\"{shown}\" has the capture {{{name}}} twice"));
            }
            names.push(name);
            if several && segments.iter().any(|segment| matches!(segment, Segment::Several(_))) {
                return Err(format!(
                    "\"{shown}\" has two captures of several segments: where one ends could not be told"
                ));
            }
            segments.push(if several { Segment::Several(name.into()) } else { Segment::One(name.into()) });
        }
        let has_captures = !names.is_empty();
        Ok(Self { text: text.into(), segments: segments.into(), has_captures })
    }
}

impl fmt::Display for PathPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern(text: &str) -> PathPattern {
        text.parse().unwrap()
    }

    #[test]
    fn a_pattern_matches_whole_segments() {
        let lfs = pattern("/{repo..}/info/lfs/objects/batch");
        assert_eq!(lfs.capture("/a/b.git/info/lfs/objects/batch", "repo"), Some("a/b.git"));
        assert_eq!(lfs.capture("/info/lfs/info/lfs/objects/batch", "repo"), Some("info/lfs"));
        for other in [
            "/info/lfs/objects/batch",
            "//info/lfs/objects/batch",
            "/a/info/lfs/objects/batch/",
            "/a//b/info/lfs/objects/batch",
        ] {
            assert!(!lfs.matches(other), "{other}");
        }
        let oss = pattern("/oss/v2/buckets/{bucket}/objects/batchsigneds3download");
        assert_eq!(oss.capture("/oss/v2/buckets/b%2Fc/objects/batchsigneds3download", "bucket"), Some("b%2Fc"));
        assert!(!oss.matches("/oss/v2/buckets/b/c/objects/batchsigneds3download"));
        assert!(pattern("/a/b").matches("/a/b") && !pattern("/a/b").matches("/a/b/"));
        assert!(pattern("/{x}/").matches("/a/") && !pattern("/{x}/").matches("/a"));
    }

    #[test]
    fn the_difference_to_a_path_is_the_first_segment_that_does_not_fit() {
        for (text, path, alike, difference) in [
            ("/v1/teams/{team}/links", "/v1/team/north/links", 3, "segment 2 is \"team\", and has to be teams"),
            ("/v1/teams/{team}/links", "/v1/teams//links", 3, "segment 3 is \"\", and has to be {team}"),
            ("/v1/teams/{team}/links", "/v1/teams/north", 3, "there is no segment for links"),
            ("/v1/links", "/v1/links/", 2, "there is a slash too many at its end"),
            ("/v1/links/", "/v1/links", 2, "there is no slash at its end"),
            ("/v1/links", "/v1/links/a", 2, "segment 3, \"a\", is one too many"),
            ("/{repo..}/lfs/batch", "/org/repo/lfs/locks", 0, "segment 4 is \"locks\", and has to be batch"),
            ("/{repo..}/lfs/batch", "/org/repo/lsf/batch", 1, "segment 3 is \"lsf\", and has to be lfs"),
            ("/{repo..}/lfs/batch", "/lfs/batch", 2, "there is no segment for {repo..}"),
            ("/a/{x..}/b", "/c/d/b", 1, "segment 1 is \"c\", and has to be a"),
            ("/a", "*", 0, "there is no segment for a"),
        ] {
            assert_eq!(pattern(text).difference(path), Some((alike, difference.to_owned())), "{text} {path}");
        }
        assert_eq!(pattern("/{repo..}/lfs/batch").difference("/a/b/lfs/batch"), None);
    }

    #[test]
    fn patterns_overlap_if_a_path_matches_both() {
        for (one, other, overlaps) in [
            ("/a", "/a", true),
            ("/a", "/b", false),
            ("/{x}", "/b", true),
            ("/{x}/a", "/b", false),
            ("/{x..}/a", "/b/{y}", true),
            ("/{x..}/a", "/b/c/d", false),
            ("/{x..}/a", "/{y..}/b", false),
            ("/{x..}/a", "/b/{y..}", true),
            ("/{x..}/a", "/a", false),
            ("/{x..}/a", "/a/a", true),
            ("/a/{x}", "/a/", false),
            ("/{x..}/a/{y}", "/{z..}/b", true),
            ("/{x..}/a", "/{y..}", true),
            ("/{x..}/a/b", "/{y..}/c/b", false),
        ] {
            assert_eq!(pattern(one).overlaps(&pattern(other)), overlaps, "{one} {other}");
            assert_eq!(pattern(other).overlaps(&pattern(one)), overlaps, "{other} {one}");
        }
    }

    #[test]
    fn what_is_no_pattern_is_refused_with_a_reason() {
        for (text, reason) in [
            ("a", "slash"),
            ("", "slash"),
            ("/a?b", "percent-encoded"),
            ("/a b", "percent-encoded"),
            ("/a{x}", "whole segment"),
            ("/{}", "without a name"),
            ("/{x}/{x}", "twice"),
            ("/{x..}/{y..}", "two captures"),
            (&format!("/{}", "a".repeat(1024)), "1024 bytes at most"),
        ] {
            let error = text.parse::<PathPattern>().unwrap_err();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }
}
