//! `section!`: one table of the configuration, each key declared once.

/// Declares a table of the configuration: its struct, its defaults, and `keys`, which visits each key in the order of the
/// file ([`super::table::TableVisitor`]). A field is
///
/// - `field: Type = default, kind;`: the key of that name; the field's doc is the key's line in every generated page;
/// - `field: Type = default => [table KEYS];`: a table whose keys `KEYS` visits, `[optional BLANK, KEYS]`: one that may be
///   absent, or `[list BLANK, KEYS]`: any number of them;
/// - `field: Type = default;`: no key.
///
/// Where keys have no default, `: fn NAME(…)` after the struct's name makes the constructor that takes them; otherwise the
/// struct implements `Default`.
macro_rules! section {
    ($(#[$meta:meta])* pub struct $name:ident { $($fields:tt)* }) => {
        section! { $(#[$meta])* pub struct $name: pub(in crate::config) fn defaults() { $($fields)* } }

        impl Default for $name {
            fn default() -> Self {
                Self::defaults()
            }
        }
    };
    ($(#[$meta:meta])* pub struct $name:ident: $vis:vis fn $new:ident($($without:ident: $type:ty),*) {
        $($(#[doc = $doc:literal])+ pub $field:ident: $of:ty = $default:expr $(, $kind:expr)? $(=> [$($how:tt)+])?;)+
    }) => {
        $(#[$meta])*
        pub struct $name {
            $($(#[doc = $doc])+ pub $field: $of,)+
        }

        impl $name {
            /// The defaults, with these values where there are none.
            $vis fn $new($($without: $type),*) -> Self {
                Self { $($field: $default,)+ }
            }

            /// Visits each key.
            pub(in crate::config) fn keys(&mut self, table: &mut $crate::config::table::TableVisitor<'_>) {
                $(section!(@visit self, table, $field, concat!($($doc),+) $(, $kind)? $(=> [$($how)+])?);)+
            }
        }
    };
    (@visit $this:ident, $table:ident, $field:ident, $doc:expr) => {};
    (@visit $this:ident, $table:ident, $field:ident, $doc:expr, $kind:expr) => {
        $table.key(stringify!($field), $doc, &mut $this.$field, $kind);
    };
    (@visit $this:ident, $table:ident, $field:ident, $doc:expr => [table $keys:expr]) => {
        $table.table(stringify!($field), $doc, |table| $keys(&mut $this.$field, table));
    };
    (@visit $this:ident, $table:ident, $field:ident, $doc:expr => [optional $blank:expr, $keys:expr]) => {
        $table.optional(stringify!($field), $doc, &mut $this.$field, $blank, $keys);
    };
    (@visit $this:ident, $table:ident, $field:ident, $doc:expr => [list $blank:expr, $keys:expr]) => {
        $table.list(stringify!($field), $doc, &mut $this.$field, $blank, $keys);
    };
}

pub(super) use section;
