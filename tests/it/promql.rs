//! The selectors of a PromQL expression. Nothing else of the expression is parsed; Prometheus checks it.

#[derive(Debug, PartialEq, Eq)]
pub struct Selector {
    pub name: String,
    /// Label, operator, value.
    pub matchers: Vec<(String, String, String)>,
}

const GROUPINGS: [&str; 6] = ["by", "without", "on", "ignoring", "group_left", "group_right"];
const WORDS: [&str; 19] = [
    "and", "or", "unless", "bool", "offset", "atan2", "inf", "nan", "sum", "avg", "min", "max", "count", "group",
    "topk", "bottomk", "quantile", "stddev", "stdvar",
];

/// The selectors of `expression`, in its order.
pub fn selectors(expression: &str) -> Vec<Selector> {
    let mut selectors = Vec::new();
    let mut rest = expression.trim_start();
    while let Some(first) = rest.chars().next() {
        rest = match first {
            '"' | '\'' | '`' => string(rest).1,
            '#' => rest.split_once('\n').map_or("", |(_, rest)| rest),
            '[' => rest.split_once(']').unwrap().1,
            '{' => panic!("a selector without a name: {rest}"),
            'a'..='z' | 'A'..='Z' | '_' | ':' => {
                let (word, after) = word(rest);
                let after = after.trim_start();
                if GROUPINGS.contains(&word) {
                    after.strip_prefix('(').map_or(after, |list| list.split_once(')').unwrap().1)
                } else if after.starts_with('(') || WORDS.contains(&word.to_lowercase().as_str()) {
                    after
                } else {
                    let (matchers, after) = if after.starts_with('{') { matchers(after) } else { (Vec::new(), after) };
                    selectors.push(Selector { name: word.to_owned(), matchers });
                    after
                }
            }
            // A number, or a span after `offset`.
            '0'..='9' => word(rest).1,
            _ => &rest[first.len_utf8()..],
        }
        .trim_start();
    }
    selectors
}

fn word(text: &str) -> (&str, &str) {
    text.split_at(text.find(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != ':').unwrap_or(text.len()))
}

/// A quoted string's value, and the rest.
fn string(text: &str) -> (String, &str) {
    let quote = text.chars().next().unwrap();
    let mut value = String::new();
    let mut chars = text.char_indices().skip(1);
    while let Some((at, c)) = chars.next() {
        match c {
            '\\' if quote != '`' => value.push(chars.next().unwrap().1),
            c if c == quote => return (value, &text[at + c.len_utf8()..]),
            c => value.push(c),
        }
    }
    panic!("a string without an end: {text}");
}

fn matchers(text: &str) -> (Vec<(String, String, String)>, &str) {
    let mut matchers = Vec::new();
    let mut rest = text[1..].trim_start();
    while !rest.starts_with('}') {
        let (label, after) = word(rest);
        let after = after.trim_start();
        let (operator, after) = after.split_at(after.find(|c: char| !"=!~".contains(c)).unwrap());
        let (value, after) = string(after.trim_start());
        matchers.push((label.to_owned(), operator.to_owned(), value));
        rest = after.trim_start();
        rest = rest.strip_prefix(',').unwrap_or(rest).trim_start();
    }
    (matchers, &rest[1..])
}

#[test]
fn selectors_are_found_anywhere_in_an_expression() {
    let matcher = |label: &str, operator: &str, value: &str| (label.to_owned(), operator.to_owned(), value.to_owned());
    let found = selectors(
        r#"sum by (job, le) (rate(a_bucket{le=~"120(\\.0)?", job != 'x,}'}[5m])) / on (job) group_left () (b:c:d offset 30m > 0)
        and histogram_quantile(0.99, sum(e)) < 0.7 * topk(3, f{}) # g
        unless label_replace(h, "i", "$1", "j", "(.*)") == bool 1e9"#,
    );
    let of = |name: &str, matchers| Selector { name: name.to_owned(), matchers };
    assert_eq!(
        found,
        [
            of("a_bucket", vec![matcher("le", "=~", r"120(\.0)?"), matcher("job", "!=", "x,}")]),
            of("b:c:d", vec![]),
            of("e", vec![]),
            of("f", vec![]),
            of("h", vec![]),
        ]
    );
}
