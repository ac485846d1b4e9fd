//! Writes the calls for a batch's misses: the client's own request, with the list of ids cut down.

use bytes::Bytes;

use super::request::{Around, Batch, Form, decode};

/// A batch's request without its ids. All else goes upstream as the client wrote it, byte for byte.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallTemplate {
    form: Form,
    /// The path, the question mark, and the parameters before the ids; for the body form the whole target.
    before: Box<str>,
    /// The ids' parameter as its client spelled it, with the equals sign.
    name: Box<str>,
    /// The separator of two ids in a target.
    separator: Box<str>,
    /// The parameters after the ids, each with its ampersand.
    after: Box<str>,
    /// The body up to the list, and after it.
    body: [Box<str>; 2],
}

impl CallTemplate {
    /// The request of `batch`, to `path`.
    pub fn new(path: &str, batch: &Batch<'_>) -> Self {
        let mut template = Self {
            form: batch.form,
            before: path.into(),
            name: Box::default(),
            separator: Box::default(),
            after: Box::default(),
            body: Default::default(),
        };
        match &batch.around {
            Around::Query { name, separator, query } => {
                let is_ids = |pair: &str| pair.split_once('=').is_some_and(|(other, _)| decode(other) == decode(name));
                let (mut before, mut after, mut has_ids) = (format!("{path}?"), String::new(), false);
                for pair in query.split('&') {
                    match (is_ids(pair), has_ids) {
                        (true, _) => has_ids = true,
                        (false, false) => before.extend([pair, "&"]),
                        (false, true) => after.extend(["&", pair]),
                    }
                }
                (template.before, template.after) = (before.into(), after.into());
                template.name = format!("{name}=").into();
                template.separator = match batch.form {
                    Form::Comma | Form::EncodedComma => (*separator).into(),
                    Form::Repeated | Form::Brackets | Form::Body => format!("&{name}=").into(),
                };
            }
            Around::Body { query, before, after } => {
                template.before = [path].into_iter().chain(query.iter().flat_map(|query| ["?", *query])).collect();
                template.body = [Box::from(*before), Box::from(*after)];
            }
        }
        template
    }

    /// How the client wrote its batch.
    pub fn form(&self) -> Form {
        self.form
    }

    /// The request target of a call for ids that were written so.
    pub fn target<'a>(&self, ids: impl Iterator<Item = &'a str>) -> String {
        let mut target = String::from(&*self.before);
        if self.form != Form::Body {
            for (index, id) in ids.enumerate() {
                target.push_str(if index > 0 { &self.separator } else { &self.name });
                target.push_str(id);
            }
        }
        target.push_str(&self.after);
        target
    }

    /// The body of a call for ids that were written so; empty for the query forms.
    pub fn body<'a>(&self, ids: impl Iterator<Item = &'a str>) -> Bytes {
        if self.form != Form::Body {
            return Bytes::new();
        }
        let [before, after] = &self.body;
        let mut body = String::from(&**before);
        for (index, id) in ids.enumerate() {
            body.push(if index == 0 { '[' } else { ',' });
            body.push_str(id);
        }
        body.push(']');
        body.push_str(after);
        Bytes::from(body)
    }

    /// The most bytes of a target without its ids.
    pub fn bytes(&self) -> usize {
        self.before.len() + self.name.len() + self.after.len()
    }

    /// The most bytes that an id that is written so adds to a target.
    pub fn bytes_of(&self, written: &str) -> usize {
        match self.form {
            Form::Body => 0,
            _ => self.separator.len() + written.len(),
        }
    }
}
